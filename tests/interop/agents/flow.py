"""A flow of numbered messages, which does not care whether the connection is there."""

import asyncio

from protocol import emit

BURST = 5
PAUSE = 0.005


class Flow:
    """Sends `0`, `1`, `2`, ... in bursts until it is stopped, never more than the driver allows."""

    def __init__(self, send):
        self.send = send
        self.sent = 0
        self.allowed = 0
        self.task = asyncio.ensure_future(self._run())

    async def _run(self):
        try:
            while True:
                for _ in range(min(BURST, self.allowed - self.sent)):
                    self.send(str(self.sent))
                    self.sent += 1
                # A pace, so that the flow is in its middle when the server is killed.
                await asyncio.sleep(PAUSE)
        except Exception as error:
            emit("failed", reason=f"the flow: {error!r}")

    def stop(self):
        """Ends it and says how many were sent."""
        self.task.cancel()
        emit("sent", count=self.sent)
