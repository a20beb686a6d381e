"""What a server does not answer, and what a client does not take: tokens, TLS, limits, malformed requests, versions."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pyarrow.flight as flight
import pytest
from service_processes import SMALL, assert_same_batches

from softshard.loaders import Augment, Connection, Loader, RemoteLoader, Subset
from softshard.loaders.service_access import check_listen, read_token
from softshard.loaders.service_address import split_address, split_servers
from softshard.loaders.service_client import _refusal_of
from softshard.loaders.service_desk import Desk, ServedSet
from softshard.loaders.service_limits import Limits
from softshard.loaders.service_metrics import LineBudget
from softshard.loaders.service_protocol import REFUSED, Refusal, Ticket, check_stack, decode_stack
from softshard.loaders.service_recipe import BatchRecipe, wire_dtype, write_value
from softshard.loaders.service_server import BatchServer
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError

TOKEN = "0123456789abcdef0123456789abcdef"
RECIPE = BatchRecipe("small", 4, augment=Augment(size=16))


@contextmanager
def served(packed, limits=None, **options):
    """A server in this process."""
    server = BatchServer(Desk({"small": ServedSet(packed)}, num_threads=1, limits=limits), **options)
    try:
        yield server
    finally:
        server.close(5)


@pytest.fixture
def server(packed):
    with served(packed) as found:
        yield found


def client_of(server):
    return flight.FlightClient(server.address)


def act(server, name, content):
    """What an action answers, or the code and message of its refusal."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    with client_of(server) as client:
        try:
            (result,) = client.do_action(flight.Action(name, content))
        except flight.FlightError as error:
            refusal = Refusal.from_bytes(bytes(error.extra_info))
            return refusal.code, refusal.message
        return json.loads(result.body.to_pybytes())


def get(server, ticket):
    """The rows of a ticket, or the code and message of its refusal."""
    with client_of(server) as client:
        try:
            return client.do_get(flight.Ticket(ticket)).read_all()
        except flight.FlightError as error:
            refusal = Refusal.from_bytes(bytes(error.extra_info))
            return refusal.code, refusal.message


def open_recipe(server, recipe=RECIPE, **changes):
    return act(server, "open", {"protocol": 1, "recipe": recipe.to_json() | changes})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "format-disk",
            {},
            "expected an action of hello, open, count-classes, vocabulary, found 'format-disk'",
        ),
        ("hello", b"\xff\x00", r"hello: expected a JSON object, found b'\\xff\\x00'"),
        ("hello", b"[" * 5000, "hello: expected at most 4,096 bytes, found 5,000"),
        ("hello", {"protocol": 2}, "client: expected protocol 1 of the data service"),
        ("hello", {}, "found None"),
        ("open", b"[" * 100_000, "open: expected a JSON object"),
        ("open", {"protocol": 1}, "recipe: expected BatchRecipe, found None"),
        (
            "open",
            {"protocol": 1, "recipe": {"batch_size": 1}},
            "recipe: expected the fields dataset, batch_size",
        ),
    ],
)
def test_requests_that_are_none_are_refused_with_what_was_expected(server, name, content, message):
    code, said = act(server, name, content)
    assert code == "usage"
    assert message in said.replace("\\x", r"\\x") or message in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": "4"}, "recipe: batch_size: expected int, found '4'"),
        ({"batch_size": True}, "recipe: batch_size: expected int, found True"),
        ({"batch_size": 0}, "loader: expected batch_size"),
        ({"batch_size": 2**40}, "recipe: expected a batch of at most"),
        ({"world_size": 3, "lanes": 5}, "expected lanes that divide the global batch"),
        ({"seed": -1}, "seed"),
        (
            {"dataset": "../other"},
            "recipe: expected the name of a data set, found '../other'. This server has small",
        ),
        ({"dataset": "/etc"}, "expected the name of a data set, found '/etc'"),
        ({"dataset": "s3://bucket/set"}, "expected the name of a data set"),
        ({"targets": "hopes"}, "loader: expected targets of"),
        ({"targets": ["tags", "hopes"]}, "loader: expected targets of"),
        ({"targets": ["tags", 1]}, "recipe: targets: expected one of"),
        ({"targets": "relabel", "keep_targets": -1}, "loader: expected keep_targets from 1"),
        ({"targets": "weights"}, "expected samples with 'weights' for targets='weights', found none"),
        ({"dtype": "float64"}, "loader: expected dtype of"),
        ({"balance": "all"}, "recipe: balance: expected one of float, None, found 'all'"),
        (
            {"labels": {"tree": None, "class_names": None, "relabels": None, "chosen": None}},
            "expected one of tree, class_names",
        ),
        (
            {"labels": {"tree": {"classes": 1}, "class_names": None, "relabels": None, "chosen": None}},
            "recipe: labels",
        ),
        (
            {"subset": {"classes": None, "fraction": 1.0, "seed": 0, "keys": "/etc/passwd"}},
            "recipe: subset: keys: expected one of tuple, None, found '/etc/passwd'",
        ),
        ({"augment": {"size": 8}}, "recipe: augment: expected the fields"),
        ({"augment": write_value(Augment()) | {"size": 10**6}}, "recipe: expected a batch of at most"),
        ({"augment": write_value(Augment()) | {"scale": [2.0, 1.0]}}, "augment: expected a scale"),
    ],
)
def test_recipes_are_checked_field_by_field(server, changes, message):
    code, said = open_recipe(server, **changes)
    assert code in ("usage", "data")
    assert message in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": -1}, "ticket: expected epoch from 0"),
        ({"epoch": 2**32}, "ticket: expected epoch from 0"),
        ({"taken": 1.5}, "ticket: expected taken from 0"),
        ({"taken": 105}, "small: expected below 105 samples taken of a lane"),
        ({"rank": 1}, "a rank below 1, found 0 and 1"),
        ({"memory": None}, "ticket: expected memory as text"),
        ({"memory": "\ud800"}, "ticket: expected memory as text of ASCII, found '\\ud800'"),
        ({"recipe": "\ud800"}, "ticket: expected recipe as text of ASCII, found '\\ud800'"),
        ({"path": "/etc/passwd"}, "ticket: expected recipe, epoch, taken, rank and memory"),
    ],
)
def test_tickets_are_checked_field_by_field(server, change, message):
    ticket = {"recipe": open_recipe(server)["recipe"], "epoch": 0, "taken": 0, "rank": 0, "memory": ""}
    code, said = get(server, json.dumps(ticket | change).encode())
    assert code == "usage"
    assert message in said or message.replace("small", "shards/train") in said


def test_half_a_surrogate_pair_in_a_request_is_refused_as_any_other_name(server):
    assert act(server, "count-classes", {"recipe": "\ud800"})[0] == "unknown-recipe"


def test_a_client_that_asks_nonsense_does_not_flood_the_log(server, caplog):
    for _ in range(40):
        assert act(server, "count-classes", {"recipe": "none"})[0] == "unknown-recipe"
    assert sum(record.getMessage() == "refused" for record in caplog.records) == 30
    assert server.stats().requests["count-classes"]["unknown-recipe"] == 40
    budget = LineBudget(2)
    assert [budget.take(now) for now in (0, 1, 2, 59, 60, 61, 62)] == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
    ]


def test_a_large_ticket_and_one_of_no_recipe_are_refused(server):
    assert get(server, b"x" * 5000) == ("usage", "ticket: expected at most 4,096 bytes, found 5,000")
    code, said = get(server, Ticket("f" * 64, 0, 0, 0).to_bytes())
    assert (code, said) == (
        "unknown-recipe",
        "recipe ffffffffffff: expected one that is open here, found none",
    )


def test_who_does_not_know_the_proof_gets_no_handle(server):
    rows = get(server, Ticket(open_recipe(server)["recipe"], 0, 0, 0, memory="0" * 64).to_bytes())
    assert rows.num_rows == 4


def test_other_methods_of_flight_are_not_there(server):
    with client_of(server) as client:
        with pytest.raises((flight.FlightError, NotImplementedError)):
            list(client.list_flights())
        with pytest.raises((flight.FlightError, NotImplementedError)):
            client.get_flight_info(flight.FlightDescriptor.for_path("/etc/passwd"))


def test_garbage_on_the_socket_harms_nobody(server, packed):
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000), b""):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(garbage)
    with RemoteLoader(server.address, **SMALL) as remote, Loader(packed, **SMALL) as local:
        assert_same_batches(remote, local)


def test_a_request_beyond_the_limit_is_refused_and_the_others_are_served(packed):
    with served(packed, Limits(request_bytes=20_000)) as server:
        options = SMALL | {"subset": Subset(keys=tuple(f"key-{i}" for i in range(5000)))}
        with pytest.raises(
            UsageError, match=r"open: expected at most 20,000 bytes, found \d.*--max-request-bytes"
        ):
            RemoteLoader(server.address, **options)
        assert "open" not in server.stats().requests  # nothing was sent
        with RemoteLoader(server.address, **SMALL) as remote:
            assert len(list(remote)) == 9


def test_more_clients_and_calls_than_are_allowed_are_refused_for_a_while(packed, within):
    limits = Limits(clients=1, client_idle_s=0.5, calls_per_client=1)
    with served(packed, limits) as server, RemoteLoader(server.address, prefetch=4, **SMALL) as first:
        list(first)  # four at a time, of which one is let in
        assert first.fetch_stats().retries > 0
        # Another one has to wait until the first has been away for half a second.
        second = within(lambda: RemoteLoader(server.address, connection=Connection(connect_s=20), **SMALL))
        assert len(list(second)) == 9
        second.close()


def test_the_recipe_used_least_recently_makes_room_and_is_opened_again(packed):
    with (
        served(packed, Limits(recipes=1, recipe_idle_s=0.01)) as server,
        RemoteLoader(server.address, **SMALL) as one,
        RemoteLoader(server.address, **SMALL | {"seed": 5}) as two,
    ):
        with Loader(packed, **SMALL) as local:
            list(two)
            assert_same_batches(one, local)
        assert server.desk.totals()["recipes"] == 1


def test_a_small_cache_costs_decodes_and_no_batch(packed):
    with served(packed, Limits(cache_bytes=1, memory_bytes=1)) as server:
        with RemoteLoader(server.address, **SMALL) as remote, Loader(packed, **SMALL) as local:
            assert_same_batches(remote, local)
            assert_same_batches(remote, local)
            assert remote._pool.num_in_memory == 0
        assert server.stats().cache.num_bytes == 0 == server.stats().memory_bytes


def test_another_pixel_stack_is_refused_and_both_are_named(server, monkeypatch):
    real = __import__("softshard.loaders.remote_loader", fromlist=["decode_stack"]).decode_stack
    monkeypatch.setattr(
        "softshard.loaders.remote_loader.decode_stack", lambda kind: real(kind) | {"opencv": "1.2.3"}
    )
    with pytest.raises(
        UsageError, match=r"expected this trainer's pixel stack, found another: opencv 1\.2\.3 here and"
    ):
        RemoteLoader(server.address, **SMALL)


def test_a_server_from_before_the_filter_had_a_name_is_refused():
    mine = decode_stack("cpu")
    older = {name: value for name, value in mine.items() if name != "filter"}
    with pytest.raises(UsageError, match="filter triangle here and none there"):
        check_stack(mine, older, "grpc://a:1")


def test_servers_that_decode_elsewhere_than_expected_are_refused(server):
    with pytest.raises(UsageError, match="decoder cuda here and cpu there"):
        RemoteLoader(server.address, connection=Connection(decoder="cuda"), **SMALL)


def test_options_that_do_not_fit_the_data_set_are_the_same_error_as_here(server, packed):
    for options in (
        {"teacher": True},
        {"subset": Subset(classes=("cow",))},
        {"batch_size": 400, "last_batch": "drop"},
    ):
        errors = []
        for make in (lambda o: RemoteLoader(server.address, **o), lambda o: Loader(packed, **o)):
            with pytest.raises((UsageError, DataError)) as caught:
                make(SMALL | options)
            errors.append(str(caught.value).partition(": ")[2])
        assert errors[0] == errors[1] or errors[0].partition(": ")[2] in errors[1]


# ---- Tokens and TLS


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) files for 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
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
    subprocess.run(command, check=True, capture_output=True, timeout=60)
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
            client.do_get(flight.Ticket(b"x")).read_all()
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
    assert refusal.code == REFUSED
    assert refusal.message.startswith("expected a certificate that names this host")


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


def test_what_is_blended_after_normalisation_is_sent_as_floats():
    from softshard.loaders import CutMix, Erasing, Mixup

    assert wire_dtype(Augment(), "float32") == wire_dtype(Augment(cutmix=CutMix()), "float16") == "uint8"
    assert (
        wire_dtype(Augment(mixup=Mixup()), "float32")
        == wire_dtype(Augment(erasing=Erasing()), "float32")
        == "float32"
    )


def test_without_pyarrow_the_error_names_the_extra():
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from softshard.shards.cli import main\n"
        "sys.exit(main(['serve', '/nowhere']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "pip install 'softshard[service]'" in done.stderr


def test_health_and_metrics_over_http(packed):
    from prometheus_client.parser import text_string_to_metric_families
    from service_processes import serving

    with serving(packed) as server:
        assert server.get("/healthz") == "ok\n"
        with RemoteLoader(server.url, **SMALL) as remote:
            list(remote)
        families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics"))}
        assert families["softshard_service_images"].samples[0].value == 105
        made = {
            sample.labels["how"]: sample.value for sample in families["softshard_service_batches"].samples
        }
        assert made == {"made": 9, "joined": 0, "cached": 0}
        assert server.stats()["sent_bytes"]["memory"] > 0


def test_bench_measures_servers_as_a_trainer_sees_them(server, tmp_path, capsys):
    arguments = ["bench", f"{server.address}/small", "--batch-size", "10", "--steps", "2", "--repeats", "2"]
    report, table = tmp_path / "bench.json", tmp_path / "bench.csv"
    assert main([*arguments, "--size", "16", "--json", str(report), "--csv", str(table)]) == 0
    found = json.loads(report.read_text())
    assert found["samples"] == 105
    assert found["results"]["loader"]["repeats"] == 2
    assert found["requests"]["sent"] >= 2 * (5 + 2)
    assert found["requests"]["in_shared_memory"] > 0
    assert main([*arguments, "--size", "16"]) == 0  # a seed of its own
    assert server.desk.counts().made >= 2 * 2 * (5 + 2)
    assert server.desk.counts().hits == 0
    assert found["verdict"]["text"] in capsys.readouterr().out
    assert table.read_text().splitlines()[1].startswith("loader,loader,")
    for option in (("--against", "webdataset"), ("--cache", str(tmp_path))):
        assert main([*arguments, *option]) == 2
        assert f"expected {option[0]} with the folder or URL of a data set" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "verify", "stats"])
def test_what_wants_shards_says_so_of_servers(command, capsys):
    assert main([command, "grpc+tls://a:1/train,grpc+tls://b:1/train"]) == 2
    assert "expected a folder or URL with shards, found servers of softshard serve" in capsys.readouterr().err


def test_two_askers_of_one_batch_wait_for_the_same_one(packed):
    desk = Desk({"small": ServedSet(packed)}, num_threads=1)
    try:
        recipe = desk.open(RECIPE.to_json())["recipe"]
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(desk.batch(Ticket(recipe, 0, 8, 0))))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 8
        assert all(made is found[0] for made in found)
        assert desk.counts().made == 1
    finally:
        desk.close()
