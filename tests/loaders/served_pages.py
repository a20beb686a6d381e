"""A server of the inspector's pages in this process, and a client that says exactly what it is told to."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from html_elements import Elements
from inspected_sets import options
from waiting import LONG_S, wait_until

from softshard.loaders.browse import Browser
from softshard.loaders.browse_app import create_server, listen
from softshard.loaders.inspect_views import InspectOptions


class Client:
    """Asks a server of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.address = f"http://127.0.0.1:{port}"

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        """(status, headers, text); `Host` and others as given, with `_` for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG_S)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=given)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read().decode("utf-8")
        finally:
            connection.close()

    def html(self, path: str) -> str:
        """A page that must be there."""
        status, _, text = self.ask(path)
        assert status == 200, (path, status, text[-600:])
        return text

    def page(self, path: str) -> Elements:
        """A page that must be there, as elements."""
        return Elements(self.html(path))


@contextmanager
def served(dataset, asked: InspectOptions | None = None, quarantine=None) -> Iterator[Client]:
    """Serve a data set on a free port for a while; what it starts has ended then."""
    before = set(threading.enumerate())
    browser = Browser(dataset, asked or options(), quarantine)
    with listen(0) as listening:
        server = create_server(browser)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(LONG_S)
            browser.close()
    assert not thread.is_alive()
    wait_until(
        lambda: not [each for each in started_since(before) if each.name.startswith(("softshard", "inspect"))]
    )


def started_since(before: set[threading.Thread]) -> set[threading.Thread]:
    return set(threading.enumerate()) - before
