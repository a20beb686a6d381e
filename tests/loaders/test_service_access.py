"""Who is let in to the data service, and where it listens: tokens, TLS, addresses."""

import logging
import subprocess

import pyarrow.flight as flight
import pytest
from service_here import IN_TIME, client_of, served
from service_processes import SMALL, assert_same_batches
from waiting import LONG_S, wait_until

from softshard.loaders import Connection, Loader, RemoteLoader
from softshard.loaders.service_access import check_listen, read_token
from softshard.loaders.service_address import split_address, split_servers
from softshard.loaders.service_client import AWAY, _refusal_of
from softshard.shards.cli import main
from softshard.shards.errors import UsageError

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) files for 127.0.0.1, signed by itself."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def make_certificate(folder):
    files = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True, timeout=LONG_S)
    return files


def test_a_wrong_token_or_none_is_refused_and_stands_in_no_message(packed, token_file, tmp_path, caplog):
    wrong = tmp_path / "wrong"
    wrong.write_text("f" * 32)
    wrong.chmod(0o600)
    with served(packed, token=TOKEN) as server:
        for connection in (Connection(), Connection(token_file=wrong)):
            with pytest.raises(
                UsageError, match="expected the server's token, found another or none"
            ) as caught:
                RemoteLoader(server.address, connection=connection, **SMALL)
            assert TOKEN not in str(caught.value)
            assert "f" * 32 not in str(caught.value)
        with client_of(server) as client, pytest.raises(flight.FlightUnauthenticatedError):
            client.do_get(flight.Ticket(b"x"), IN_TIME).read_all()
        with RemoteLoader(server.address, connection=Connection(token_file=token_file), **SMALL) as remote:
            assert len(list(remote)) == 9
        assert server.stats().unauthenticated == 3
        assert TOKEN not in server.stats().to_prometheus()
    assert TOKEN not in caplog.text


def test_over_tls_with_a_token_batches_are_the_same(packed, token_file, certificate):
    pems = tuple(path.read_bytes() for path in certificate)
    with served(packed, token=TOKEN, tls=pems) as server, Loader(packed, **SMALL) as local:
        assert server.address.startswith("grpc+tls://")
        connection = Connection(token_file=token_file, tls_ca=certificate[0])
        with RemoteLoader(server.address, connection=connection, **SMALL) as remote:
            assert_same_batches(remote, local)
        with pytest.raises(UsageError, match=r"expected a certificate of this host, .* signed by --tls-ca"):
            RemoteLoader(server.address, connection=Connection(token_file=token_file), **SMALL)


def test_a_wrong_side_of_tls_is_told_at_once(packed, certificate):
    with served(packed) as server:
        address = server.address.replace("grpc://", "grpc+tls://")
        with pytest.raises(UsageError, match="expected a server with TLS, found one without"):
            RemoteLoader(address, connection=Connection(tls_ca=certificate[0]), **SMALL)
    text = "last error: UNKNOWN: ipv4:127.0.0.2:7172: Peer name 127.0.0.2 is not in peer certificate"
    refusal = _refusal_of(flight.FlightUnavailableError(text))
    assert refusal.code == AWAY
    assert refusal.message.startswith("expected a certificate that names this host")


def test_a_server_whose_certificate_is_not_trusted_is_left_to_the_others(packed, certificate, caplog):
    with served(packed) as server:
        address = server.address.replace("grpc://", "grpc+tls://")
        other = address.replace("127.0.0.1", "localhost")
        connection = Connection(tls_ca=certificate[0])
        with pytest.raises(UsageError, match="expected a server with TLS, found one without"):
            RemoteLoader([address, other], connection=connection, **SMALL)
        with RemoteLoader([address, server.address], connection=connection, **SMALL) as remote:
            assert len(list(remote)) == len(remote)
    assert f"{address} does not serve, the others are asked: expected a server with TLS" in caplog.text


def test_a_certificate_that_is_wrong_for_a_while_costs_no_batch(packed, certificate, tmp_path):
    right, wrong = (
        tuple(path.read_bytes() for path in files) for files in (certificate, make_certificate(tmp_path))
    )
    with served(packed, tls=right) as server:
        port = int(server.address.rpartition(":")[2])
        with Loader(packed, **SMALL) as local:
            expected = list(local)
        remote = RemoteLoader(server.address, connection=Connection(tls_ca=certificate[0]), **SMALL)
        batches = iter(remote)
        found = [next(batches)]
    (asked,) = remote._pool.servers
    with served(packed, port=port, tls=wrong):
        wait_until(lambda: asked.last_error and "found another" in asked.last_error.message)
    with served(packed, port=port, tls=right):
        found.extend(batches)
        remote.close()
    assert_same_batches(found, expected)


def test_beyond_the_loopback_address_token_and_tls_are_wanted():
    for host, token, tls in (
        ("0.0.0.0", None, False),
        ("0.0.0.0", TOKEN, False),
        ("10.0.0.1", None, True),
        ("host", None, True),
    ):
        with pytest.raises(UsageError, match=f"to listen on {host}, which other hosts can reach"):
            check_listen(host, token, tls)
    check_listen("0.0.0.0", TOKEN, True)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_listen(host, None, False)


def test_serve_refuses_an_open_address_before_it_listens(packed, capsys):
    assert main(["serve", str(packed), "--listen", "0.0.0.0:0"]) == 2
    assert (
        "expected --token-file and --tls-cert and --tls-key to listen on 0.0.0.0" in capsys.readouterr().err
    )
    assert main(["serve", str(packed), "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0"]) == 2
    assert "expected the loopback address for health and metrics" in capsys.readouterr().err
    assert main(["serve", str(packed / "none")]) == 1
    assert main(["serve", str(packed), f"train={packed}"]) == 2
    assert "expected data sets of different names, found 'train' twice" in capsys.readouterr().err
    assert logging.getLogger("softshard").propagate  # what the command logs as JSON is the caller's again


def test_a_token_is_not_sent_in_the_clear_to_another_host(token_file):
    with pytest.raises(UsageError, match="a token that would be sent in the clear"):
        RemoteLoader("grpc://192.0.2.1:7070", connection=Connection(token_file=token_file), **SMALL)


def test_token_files_are_secret_and_long(tmp_path):
    path = tmp_path / "token"
    for content, mode, message in (
        (TOKEN, 0o644, "expected a token that its owner alone can read, found mode 644"),
        ("short", 0o600, "expected a token of at least 16 characters"),
        ("with spaces in between it", 0o600, "expected a token of at least 16 characters"),
    ):
        path.write_text(content)
        path.chmod(mode)
        with pytest.raises(UsageError, match=message) as caught:
            read_token(path)
        assert content not in str(caught.value)


@pytest.mark.parametrize(
    "servers",
    [
        "grpc://a",
        "http://a:1",
        "grpc://a:1/x/y",
        "grpc://a:1?x",
        "",
        "grpc://a:1,grpc://a:1",
        "grpc://a:1/x,grpc://b:1/y",
        "grpc://user:secret@a:1",
    ],
)
def test_addresses_that_are_none_are_refused(servers):
    with pytest.raises(UsageError, match="data service: expected") as caught:
        split_servers(servers)
    assert "secret" not in str(caught.value)


def test_addresses_are_taken_apart():
    assert split_servers("grpc://a:1/x, grpc+tls://b:2/x") == (["grpc://a:1", "grpc+tls://b:2"], "x")
    assert split_servers(["grpc://[::1]:1"]) == (["grpc://[::1]:1"], None)
    assert split_address("[::1]:7070") == ("::1", 7070)
    with pytest.raises(UsageError, match="expected an address such as"):
        split_address("7070")
