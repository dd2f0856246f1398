"""How an agent talks to the driver: one JSON object a line, commands in, events out.

Commands have a key `do`, events a key `event`. Nothing else may be written to
standard output, so libraries log to standard error.
"""

import asyncio
import json
import sys


def emit(event, **fields):
    """Reports an event to the driver; fields without a value are left away."""
    fields = {key: str(value) for key, value in fields.items() if value is not None}
    print(json.dumps({"event": event, **fields}), flush=True)


async def commands():
    """Yields the driver's commands until it closes our standard input."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)
