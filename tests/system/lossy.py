"""A way to nats-server on which market data gets lost: each message of `md.>` with a given chance, by seed.

Plain NATS promises no more. What a slow consumer loses in bulk is lost here one by one, which is harder to
notice.
"""

import asyncio
import random
from typing import Final, Self

_WITH_PAYLOAD: Final = (b"MSG", b"HMSG")


class LossyWay:
    """Listens at `url`; `async with LossyWay(nats_url, share=0.05, seed=1) as way`."""

    def __init__(self, nats_url: str, *, share: float, seed: int) -> None:
        host, _, port = nats_url.removeprefix("nats://").rpartition(":")
        self._upstream = host, int(port)
        self._share = share
        self._draw = random.Random(seed)
        self._accepting: set[asyncio.Task[None]] = set()
        self.url = ""
        self.dropped = 0
        self.loses_books = False
        """While True no message about a book comes through, and all others do."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._accepting.add(task)
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        flows = [
            asyncio.create_task(_carry(reader, up_writer)),
            asyncio.create_task(self._carry_lossily(up_reader, writer)),
        ]
        try:
            await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # only `__aexit__` cancels; asyncio would log this end as a failure
        finally:
            for flow in flows:
                flow.cancel()
            await asyncio.gather(*flows, return_exceptions=True)
            for end in (writer, up_writer):
                end.transport.abort()
            self._accepting.discard(task)

    async def _carry_lossily(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            verb, *words = line.split()
            payload = b""
            if verb in _WITH_PAYLOAD:
                payload = await reader.readexactly(int(words[-1]) + len("\r\n"))
                if self._loses(words[0]):
                    self.dropped += 1
                    continue
            writer.write(line + payload)
            await writer.drain()

    def _loses(self, subject: bytes) -> bool:
        if not subject.startswith(b"md."):
            return False
        if self.loses_books:
            return b".book." in subject
        return self._draw.random() < self._share


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)
        await writer.drain()
