"""What a server does not answer, and what a client does not take: malformed requests, wrong recipes, other versions."""

import json
import os
import socket

import pyarrow.flight as flight
import pytest
from service_here import IN_TIME, act, client_of, get, open_recipe, served
from service_processes import SMALL, assert_same_batches

from softshard.loaders import Augment, Connection, Loader, RemoteLoader, Subset
from softshard.loaders.service_metrics import LineBudget
from softshard.loaders.service_protocol import Ticket, check_stack, decode_stack
from softshard.loaders.service_recipe import write_value
from softshard.shards.errors import DataError, UsageError


@pytest.fixture
def server(packed):
    with served(packed) as found:
        yield found


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
            list(client.list_flights(options=IN_TIME))
        with pytest.raises((flight.FlightError, NotImplementedError)):
            client.get_flight_info(flight.FlightDescriptor.for_path("/etc/passwd"), IN_TIME)


def test_garbage_on_the_socket_harms_nobody(server, packed):
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000), b""):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(garbage)
    with RemoteLoader(server.address, **SMALL) as remote, Loader(packed, **SMALL) as local:
        assert_same_batches(remote, local)


def test_another_pixel_stack_is_refused_and_both_are_named(server, monkeypatch):
    monkeypatch.setattr(
        "softshard.loaders.remote_loader.decode_stack", lambda kind: decode_stack(kind) | {"opencv": "1.2.3"}
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
