def variable_lines():
    import itertools, sys, types
    simple = (int, float, complex, bool, str, bytes, type(None))
    def short(value):
        if type(value) is int and value.bit_length() > 600:
            return "a number of %d bits" % value.bit_length()
        if type(value) in (str, bytes):
            return repr(value[:160]) + (" … %d in all" % len(value) if len(value) > 160 else "")
        return repr(value)
    def summary(value):
        kind = type(value)
        if kind in simple:
            return short(value)
        if kind in (list, tuple, set, frozenset):
            first = list(itertools.islice(value, 5))
            text = ", ".join(short(one) for one in first) if all(type(one) in simple for one in first) else ""
            return "%d items%s%s" % (len(value), ": " + text if text else "", ", …" if text and len(value) > 5 else "")
        if kind is dict:
            return "%d items" % len(value)
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            return "from " + str(value.__module__)
        # Only types of these libraries: attributes of other types could run their own code.
        if kind.__module__.partition(".")[0] in ("numpy", "pandas", "polars", "scipy", "torch", "xarray"):
            shape = getattr(value, "shape", None)
            if isinstance(shape, tuple) and shape:
                return " × ".join(str(int(one)) for one in shape) + (" of %s" % value.dtype if hasattr(value, "dtype") else "")
        return ""
    try:
        hidden = set(sys.modules["IPython"].get_ipython().user_ns_hidden)
    except Exception:
        hidden = {"In", "Out", "exit", "quit", "get_ipython", "open"}
    for name, value in list(ns.items()):
        if name.startswith("_") or name in hidden or isinstance(value, types.ModuleType):
            continue
        try:
            text = summary(value)
        except Exception as error:
            text = type(error).__name__
        yield "\t".join(" ".join(str(one).split())[:300] for one in (name, type(value).__name__, text))
import itertools
with open(path, "w", encoding="utf-8", errors="replace") as file:
    for line in itertools.islice(variable_lines(), most):
        file.write(line + "\n")
