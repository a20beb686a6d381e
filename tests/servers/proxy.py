"""A TCP proxy that spoils the network between a client and a real server.

with FaultyProxy(server.endpoint) as proxy:
    proxy.endpoint             # "http://127.0.0.1:41235": the server, seen through the proxy
    proxy.reset_after = 10_000 # from now on a connection breaks after so many bytes of answers,
    proxy.share = 0.2          # one connection in five; which ones, the seed says
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from urllib.parse import urlsplit

from waiting import LONG_S

_BLOCK_BYTES = 16 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: close() sends RST, not FIN


class FaultyProxy:
    """Forwards TCP connections with the faults that its attributes name; all may be set at any time.

    Attributes:
        delay_s: waited before each answer.
        bytes_per_s: the rate of a connection's answers; None is no limit.
        reset_after: a connection is reset after so many bytes of answers; None is never.
        refuse: a connection is reset before anything is read.
        share: the part of the connections that reset_after and refuse hit, from 0 to 1.
        break_share: the part of the answers in the middle of which their connection is reset, from 0 to 1.
        break_within: after so many bytes of such an answer at most.
        connections: accepted so far.
        faults: of these, reset so far.
        bytes_out: bytes of answers forwarded so far.

    Args:
        target: the server, `http://127.0.0.1:8000`.
        seed: which connections are hit, in the order in which they come.
    """

    def __init__(self, target: str, *, seed: int = 0) -> None:
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.reset_after: int | None = None
        self.refuse = False
        self.share = 1.0
        self.break_share, self.break_within = 0.0, 1_000_000
        self.connections = self.faults = self.bytes_out = 0
        self._target = urlsplit(target)
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"{self._target.scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        self._run(asyncio.start_server(self._serve, sock=self._listener))
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONG_S)
        self._loop.close()
        self._listener.close()

    def cut(self) -> None:
        """Close all connections that are open."""
        self._run(self._cut())

    def _run(self, what: Coroutine) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(LONG_S)

    async def _cut(self) -> None:
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        hit = self._random.random() < self.share
        both = [writer]
        tasks: list[asyncio.Task] = []
        try:
            if hit and self.refuse:
                self._reset(writer)
                return
            try:
                answers, requests = await asyncio.open_connection(self._target.hostname, self._target.port)
            except OSError:
                self._reset(writer)
                return
            both.append(requests)
            asked = asyncio.Event()
            tasks.append(asyncio.create_task(_forward_requests(reader, requests, asked)))
            tasks.append(asyncio.create_task(self._forward_answers(answers, writer, asked, hit)))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (OSError, asyncio.CancelledError):  # one side is gone, or the proxy stops
            pass
        finally:
            for task in tasks:
                task.cancel()
            for side in both:
                side.close()

    async def _forward_answers(
        self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event, hit: bool
    ) -> None:
        sent = 0
        broken = None
        while data := await answers.read(_BLOCK_BYTES):
            if asked.is_set():
                asked.clear()
                await asyncio.sleep(self.delay_s)
                if self._random.random() < self.break_share:
                    broken = sent + self._random.randrange(1, self.break_within)
            limits = [self.reset_after if hit else None, broken]
            limit = min((each for each in limits if each is not None), default=None)
            data = data if limit is None else data[: max(0, limit - sent)]
            writer.write(data)
            await writer.drain()
            sent += len(data)
            self.bytes_out += len(data)
            if limit is not None and sent >= limit:
                self._reset(writer)
                return
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        self.faults += 1
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.transport.abort()


async def _forward_requests(
    reader: asyncio.StreamReader, requests: asyncio.StreamWriter, asked: asyncio.Event
) -> None:
    while data := await reader.read(_BLOCK_BYTES):
        requests.write(data)
        asked.set()
        await requests.drain()
