"""What may hold up a server or a client of the data service, and does not: hung opens, many recipes, bad servers, drains."""

import threading

import pytest

from softshard.loaders import Connection
from softshard.loaders.service_client import AWAY, Server
from softshard.loaders.service_protocol import Refusal

NOWHERE = "grpc://127.0.0.1:9"  # nothing listens there


def test_a_server_that_hangs_while_it_is_opened_holds_up_nobody_else(monkeypatch, within):
    server = Server(NOWHERE, Connection(request_s=0.2), "c", {})
    hangs, let_go = threading.Event(), threading.Event()

    def hang(name, content):
        hangs.set()
        assert let_go.wait(60)
        raise Refusal(AWAY, "hung up")

    monkeypatch.setattr(server, "_action", hang)
    opening = threading.Thread(target=lambda: pytest.raises(Refusal, server.open, {}))
    opening.start()
    try:
        assert hangs.wait(60)
        within(lambda: server.did_badly(Refusal(AWAY, "no answer")), 10)  # as the consumer's thread does
        with pytest.raises(Refusal, match=r"expected it to open the recipe within 0\.2 s") as caught:
            within(lambda: server.open({}), 10)
        assert caught.value.code == AWAY
    finally:
        let_go.set()
        opening.join(60)
        server.close()
