"""A Google Cloud Storage of this machine: the emulator of the package gcp-storage-emulator, in a process of its own.

It speaks the JSON interface that gcsfs speaks: simple and resumable uploads, listings, ranges. What it does not do, and
what no test can show with it: credentials (everyone is let in), the condition under which a file is made anew (it is
written over), pages of listings, status 416 for a range behind the end (it gives no bytes).
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

from servers.swift import die_with_parent, free_ports

_READY_S = 240
_WHO = {401: "Anonymous caller", 403: "ann@project.iam.gserviceaccount.com"}


def why_not() -> str | None:
    """Why it cannot run, or None."""
    for module in ("gcsfs", "gcp_storage_emulator"):
        if importlib.util.find_spec(module) is None:
            return f"needs {module}: pip install '.[dev]'"
    return None


class Emulator:
    """One object store, in memory.

        with Emulator(log) as server:
            server.endpoint               # "http://127.0.0.1:28301", for STORAGE_EMULATOR_HOST
            server.make_bucket("bucket")  # gs://bucket

    Args:
        log: a file for what it says.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        (self._port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Emulator:
        command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--quiet"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self._port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        give_up = time.monotonic() + _READY_S
        while self._process.poll() is None and time.monotonic() < give_up:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        raise RuntimeError(f"the emulator does not answer; its log: {self._log.read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def make_bucket(self, name: str) -> None:
        """A new, empty bucket."""
        request = urllib.request.Request(
            f"{self.endpoint}/storage/v1/b?project=tests",
            data=b'{"name": "%s"}' % name.encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Name to bytes of all that a bucket holds, by its JSON interface: no fsspec is in between."""
        base = f"{self.endpoint}/storage/v1/b/{bucket}/o"
        with urllib.request.urlopen(base, timeout=60) as answer:
            names = [item["name"] for item in json.load(answer)["items"]]
        found = {}
        for name in names:
            with urllib.request.urlopen(f"{base}/{quote(name, safe='')}?alt=media", timeout=60) as answer:
                found[name] = answer.read()
        return found


class Refusing:
    """A server that lets nobody in, in the words of Google Cloud Storage.

    Attributes:
        endpoint: for STORAGE_EMULATOR_HOST.
        num_requests: so far.

    Args:
        status: 401 to somebody without credentials, 403 to somebody without the right.
    """

    def __init__(self, status: int) -> None:
        self.num_requests = 0
        text = f"{_WHO[status]} does not have storage.objects.get access to the Google Cloud Storage object."
        body = json.dumps({"error": {"code": status, "message": text}}).encode()

        class Handler(BaseHTTPRequestHandler):
            def answer(handler) -> None:
                self.num_requests += 1
                handler.rfile.read(int(handler.headers["Content-Length"] or 0))
                handler.send_response(status)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: (
            None
        )  # of a client that has gone: its trace would be on standard error
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Refusing:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
