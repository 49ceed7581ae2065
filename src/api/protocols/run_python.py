# Runs the code in the file of the first argument as a program of its own, as the local sandbox of the NeMo toolkit does.
import sys


def read_code(path):
    import ast
    import os

    with open(path, encoding="utf-8") as file:
        code = file.read()
    os.unlink(path)
    if code.lstrip().startswith("{"):
        # Models write the request as text of a dictionary, too.
        try:
            value = ast.literal_eval(code.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return code
        if isinstance(value, dict) and isinstance(value.get("generated_code"), str):
            return value["generated_code"]
    return code


def main():
    code = read_code(sys.argv[1])
    sys.argv = [""]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except Exception as error:
        import traceback

        # Without the frame above.
        frames = error.__traceback__.tb_next
        if frames is None:
            sys.stderr.write("Traceback (most recent call last):\n")
        sys.stdout.flush()
        traceback.print_exception(type(error), error, frames)
        sys.exit(1)


main()
