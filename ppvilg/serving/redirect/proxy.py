"""A CONNECT proxy for a few hosts on this machine: it joins a client's connection to the TLS port of the service."""

from __future__ import annotations

import asyncio
import contextlib

HOSTS = ("wenxin.baidu.com", "aip.baidubce.com")
HEAD_SECONDS = 10.0


class TunnelProxy:
    """Listens on loopback; tunnels port 443 of `hosts` to (host, port) `target`, and answers 403 to anything else."""

    def __init__(self, port: int, hosts: tuple[str, ...], target: tuple[str, int]) -> None:
        self.port, self._hosts, self._target = port, frozenset(hosts), target
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen; `port` is then the port in use. OSError: it is taken."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=16 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not await self._allowed(reader):
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await writer.drain()
                return
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # the client has gone, or what it sent is no request
        finally:
            writer.close()

    async def _allowed(self, reader: asyncio.StreamReader) -> bool:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
        if len(words) != 3 or words[0] != "CONNECT":
            return False
        host, _, port = words[1].rpartition(":")
        return host.lower() in self._hosts and port == "443"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until one side ends, then ends the other."""
    try:
        while content := await reader.read(64 * 1024):
            writer.write(content)
            await writer.drain()
    except OSError:
        pass  # a reset connection has ended too
    finally:
        with contextlib.suppress(OSError):
            writer.close()
