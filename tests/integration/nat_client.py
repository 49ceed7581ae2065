"""Runs code with the unmodified sandbox client of the NeMo agent toolkit, and prints the results as one line of JSON.

Arguments: the type of sandbox, its URL, and a JSON list of [code, timeout in seconds].
"""

import asyncio
import json
import sys

from nat.tool.code_execution.code_sandbox import get_sandbox


async def main(kind, url, cases):
    sandbox = get_sandbox(kind, uri=url)
    results = [await sandbox.execute_code(generated_code=code, timeout_seconds=timeout) for code, timeout in cases]
    print(json.dumps(results))


asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
