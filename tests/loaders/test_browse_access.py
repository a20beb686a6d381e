"""Whom `softshard inspect --serve` answers, and what it refuses: with a page, on this machine only, nothing but reading."""

import base64
import hashlib
import re
import signal
import subprocess
import sys

import pytest

pytest.importorskip("starlette", reason="needs starlette and uvicorn: pip install 'softshard[inspect]'")
from html_elements import Elements
from served_pages import served
from waiting import LONG_S

from softshard.loaders.browse_app import listen
from softshard.shards.cli import main


@pytest.fixture(autouse=True)
def no_threads_left():
    """In place of the check after every test: the module's server has threads until its end."""


@pytest.fixture(scope="module")
def client(packed):
    with served(packed) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/nothing", 404, "Not Found"),
        ("/sample/105", 404, "expected a sample from 0 to 104, found 105"),
        ("/sample/-1", 404, "expected a number in the address"),
        ("/sample/1e3", 404, "expected a number in the address"),
        ("/sample/" + "9" * 40, 404, "expected a number in the address"),
        ("/shard/9", 404, "expected a shard from 0 to 8, found 9"),
        ("/class/9", 404, "expected a class from 0 to 8, found 9"),
        ("/shards?page=1", 404, "expected a page from 0 to 0, found 1"),
        ("/sample/0?crops=9", 400, "expected crops of 1 to 8 epochs, found 9"),
        ("/sample/0?crops=0", 400, "expected crops of 1 to 8 epochs, found 0"),
        ("/sample/0?epoch=999999999999999", 400, "expected epoch"),
        ("/step?step=99", 400, "replay: expected a step from 0 to 3"),
        ("/step?batch=0", 400, "expected a global batch of 1 to 1,048,576, found 0"),
        ("/step?batch=10&lanes=3", 400, "expected lanes that divide the global batch 10, found 3"),
        ("/step?part=7", 400, "expected a part from 0 to 0, found 7"),
        ("/step?step=%3Cb%3E", 400, "expected step as a number from 0, found '<b>'"),
        ("/search?q=" + "a" * 201, 400, "expected at most 200 characters to search for, found 201"),
        ("/../../etc/passwd", 404, "Not Found"),
        ("/%2e%2e/%2e%2e/etc/passwd", 404, "Not Found"),
        ("/shard/0%2f..%2f..%2fmanifest.json", 404, "Not Found"),
    ],
)
def test_what_is_not_there_is_refused_with_a_page(client, path, status, says):
    found, headers, html = client.ask(path)
    assert (found, headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert says in Elements(html).text
    assert "content-security-policy" in headers


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::1]", ""]
)
def test_other_names_of_this_machine_are_refused(client, host):
    assert client.ask("/", Host=host)[0] == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234"])
def test_its_own_names_are_served_also_through_a_tunnel(client, host):
    assert client.ask("/shards", Host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_sent(client, method):
    assert client.ask("/", method)[0] == 405


def test_other_sites_may_link_here_and_not_fetch(client):
    assert client.ask("/shards", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert client.ask("/shards", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


def test_the_policy_allows_this_style_and_no_script(client):
    _, headers, html = client.ask("/")
    policy = headers["content-security-policy"]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert headers["cache-control"] == "no-store"


def test_it_listens_on_this_machine_only_and_a_taken_port_is_an_error(client, packed_plain, capsys):
    assert main(["inspect", str(packed_plain), "--serve", "--port", str(client.port)]) == 2
    assert f"expected a free port of 127.0.0.1, found {client.port}" in capsys.readouterr().err
    with listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_ctrl_c_stops_the_command(packed_plain, within):
    code = "import sys; from softshard.shards.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "inspect", str(packed_plain), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = within(process.stdout.readline, LONG_S)
            assert re.search(r"http://127\.0\.0\.1:\d+/ \(stop with Ctrl-C\)", said)
            process.send_signal(signal.SIGINT)
            assert process.wait(LONG_S) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
