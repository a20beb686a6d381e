"""What a trainer takes from a server: a batch of its recipe, or an error that names the server."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
import torch
from service_processes import SMALL, assert_same_batches
from waiting import wait_until

from softshard.loaders import Augment, Faults, Loader, RemoteLoader
from softshard.loaders.batch import Batch, TeacherLevels
from softshard.loaders.faults import BadSample
from softshard.loaders.pooling import SparseTargets
from softshard.loaders.service_answer import OPENED_FIELDS, AnswerCheck, read_answer, remote_faults
from softshard.loaders.service_desk import Desk, ServedSet
from softshard.loaders.service_protocol import Refusal, decode_stack
from softshard.loaders.service_recipe import BatchRecipe
from softshard.loaders.service_server import BatchServer
from softshard.loaders.service_wire import decode_batch, encode_batch
from softshard.shards import DataError, UsageError

N, SIZE, CLASSES, LEVELS = 3, 4, 5, (5, 2)
RECIPE = BatchRecipe(
    "small", N, augment=Augment(size=SIZE), targets=("original", "tags"), keep_targets=2, teacher=True
)
CHECK = AnswerCheck(RECIPE, CLASSES, LEVELS, num_tags=7)


def batch(**changes):
    """What a server that tells the truth sends."""
    ids = torch.tensor([[0, 4], [1, 2], [0, 0]])
    whole = Batch(
        images=torch.zeros(N, SIZE, SIZE, 3, dtype=torch.uint8).permute(0, 3, 1, 2),
        classes=torch.tensor([0, 4, -1]),
        levels=torch.tensor([[4, 1], [0, -1], [-1, -1]]),
        targets=SparseTargets(torch.ones(N, 2), ids),
        crops=torch.zeros(N, 4),
        flips=torch.zeros(N, dtype=torch.bool),
        keys=["a", "b", ""],
        valid=torch.tensor([True, True, False]),
        teacher=TeacherLevels(torch.tensor([[4, 1]] * N), torch.ones(N, 2, dtype=torch.float16)),
        more_targets={"tags": SparseTargets(torch.ones(N, 2), ids + 2)},
    )
    return dataclasses.replace(whole, **changes)


def column(rows, name, array, row=None):
    """Rows with another column in the place of one."""
    i = rows.schema.get_field_index(name)
    metadata = rows.schema.field(i).metadata if row is None else {b"row": json.dumps(row).encode()}
    return rows.set_column(i, pa.field(name, array.type, metadata=metadata), array)


def test_an_honest_batch_is_taken():
    CHECK(encode_batch(batch(), [BadSample(3, "a.tar", "b", "cut short")]), "grpc://a:1")


SPARSE = SparseTargets(torch.ones(N, 2), torch.tensor([[0, 5]] * N))
FALSE = {
    "images of another size": ({"images": torch.zeros(N, 3, 9, 4, dtype=torch.uint8)}, r"images uint8 \[3, 3, 9, 4\]"),
    "images of another dtype": ({"images": torch.zeros(N, 3, SIZE, SIZE)}, "images float32"),
    "a class that there is not": ({"classes": torch.tensor([0, 1, 5])}, "classes from 0 to 5, with 5 to point to"),
    "a class below any": ({"classes": torch.tensor([0, 1, -2])}, "classes from -2 to 1"),
    "a class of a level that there is not": ({"levels": torch.tensor([[0, 2]] * N)}, "levels 2 beyond"),
    "more levels than the tree's": ({"levels": torch.zeros(N, 3, dtype=torch.int64)}, r"levels int64 \[3, 3\]"),
    "targets beyond the classes": ({"targets": SPARSE}, "targets original ids from 0 to 5, with 5 to point to"),
    "dense targets": ({"targets": torch.zeros(N, CLASSES)}, "targets original of another form"),
    "no targets": ({"targets": None}, "1 kinds of targets"),
    "other targets": ({"more_targets": {"weights": SPARSE}}, r"2 kinds of targets \(weights\)"),
    "no teacher": ({"teacher": None}, "no teacher"),
    "a teacher beyond its level": (
        {"teacher": TeacherLevels(torch.tensor([[4, 2]] * N), torch.ones(N, 2, dtype=torch.float16))},
        "teacher.ids 2 beyond",
    ),
    "crops of another shape": ({"crops": torch.zeros(N, 2)}, r"crops float32 \[3, 2\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", FALSE)
def test_a_batch_that_was_not_asked_for_is_refused_and_the_server_named(name):
    changes, message = FALSE[name]
    with pytest.raises(DataError, match=f"grpc://a:1: expected a batch of the recipe, found .*{message}"):
        CHECK(encode_batch(batch(**changes), []), "grpc://a:1")


def test_a_batch_of_fewer_slots_is_refused():
    with pytest.raises(DataError, match=r"found images uint8 \[2, 3, 4, 4\]"):
        CHECK(encode_batch(batch(), []).slice(0, 2), "grpc://a:1")


@pytest.mark.parametrize(
    ("shape", "num_bytes"), [([2**63, 3 * 2**62, 2], 0), ([(2**64 + 4) // 4, 4], 4), ([-1, -4], 4)]
)
def test_a_shape_whose_product_comes_round_is_no_memory_of_others(shape, num_bytes):
    rows = encode_batch(batch(), [])
    values = pa.array([b"\0" * num_bytes] * N, pa.binary(num_bytes))
    with pytest.raises(DataError, match=r"\d bytes for uint8"):
        decode_batch(column(rows, "images", values, ["uint8", shape]))


def test_text_that_begins_outside_of_its_buffer_is_refused():
    rows = encode_batch(batch(), [])
    offsets = pa.py_buffer(np.array([0, 1 << 30, 2, 2], np.int32).tobytes())
    keys = pa.StringArray.from_buffers(N, offsets, pa.py_buffer(b"ab"))
    with pytest.raises(DataError, match="grpc://a:1: "):
        CHECK(rows.set_column(0, rows.schema.field(0), keys), "grpc://a:1")


def test_rows_without_keys_or_with_bytes_for_them_are_refused():
    rows = encode_batch(batch(), [])
    for wrong in (
        rows.drop_columns(["keys"]),
        column(rows, "keys", pa.array([b"a"] * N, pa.binary())),
        rows.select([]),
    ):
        with pytest.raises(
            DataError, match=r"expected the rows of a batch, found others: .*one column of keys as text"
        ):
            decode_batch(wrong)


def test_a_flag_that_is_neither_true_nor_false_is_refused():
    rows = column(encode_batch(batch(), []), "flips", pa.array([b"\2"] * N, pa.binary(1)))
    with pytest.raises(DataError, match="a bool that is neither 0 nor 1"):
        CHECK(rows, "grpc://a:1")


@pytest.mark.parametrize("bad", [[BadSample("3", "a", "b", "c")], [BadSample(-1, "a", "b", "c")]])
def test_bad_samples_that_are_none_are_refused(bad):
    with pytest.raises(DataError, match="a bad sample of sample"):
        CHECK(encode_batch(batch(), bad), "grpc://a:1")


@pytest.mark.parametrize("content", [b"[]", b"{}", b"[" * 100_000, b'{"recipe": 1}', b"\xff"])
def test_an_answer_that_makes_no_sense_is_refused_and_the_server_named(content):
    with pytest.raises(DataError, match=r"grpc://a:1: open: expected .* Install the same version"):
        read_answer(content, OPENED_FIELDS, "grpc://a:1: open")


def test_a_server_sends_nobody_away_for_long_and_says_little():
    assert Refusal.from_bytes(b"[" * 100_000) is None
    for retry_s in ("1e300", "NaN", "-5", "Infinity"):
        content = f'{{"code": "busy", "message": "{"x" * 9000}", "retry_s": {retry_s}}}'.encode()
        refusal = Refusal.from_bytes(content)
        assert 0 <= refusal.retry_s <= 60
        assert len(refusal.message) == 4000


def test_images_that_servers_read_are_not_checked_here():
    assert remote_faults(None) == Faults()
    with pytest.raises(UsageError, match="verify --decode where the shards are"):
        remote_faults(Faults(check_images=True))
    with pytest.raises(
        UsageError, match="verify --decode where the shards are"
    ):  # before any server is asked
        RemoteLoader("grpc://127.0.0.1:9", faults=Faults(check_images=True), **SMALL)


class Liar(flight.FlightServerBase):
    """Says to every action what it was told to say."""

    def __init__(self, **answers):
        super().__init__("grpc://127.0.0.1:0")
        self.answers = answers

    def do_action(self, context, action):
        return [flight.Result(json.dumps(self.answers[action.type]).encode())]


HELLO = {"protocol": 1, "data_sets": {}, "memory": None}


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ({"hello": [1]}, DataError, "hello: expected a JSON object"),
        ({"hello": {}}, UsageError, "expected protocol 1"),
        ({"hello": HELLO}, DataError, "hello: expected an answer of the data service, found stack None"),
        ({"hello": HELLO | {"stack": "mine"}}, DataError, "found stack 'mine'"),
        ({"hello": HELLO | {"stack": {}, "request_bytes": "2"}}, DataError, "found request_bytes '2'"),
        ({"hello": HELLO, "open": {"recipe": 5}}, DataError, "open: expected an answer .* found recipe 5, dataset None"),
    ],
    ids=["list", "nothing", "no stack", "text", "bytes", "facts"],
)  # fmt: skip
def test_a_server_that_lies_of_itself_is_named(answers, error, message):
    if "open" in answers:
        stack = decode_stack("cpu")
        answers = answers | {"hello": HELLO | {"stack": stack}}
    server = Liar(**answers)
    try:
        with pytest.raises(error, match=message) as caught:
            RemoteLoader(f"grpc://127.0.0.1:{server.port}", **SMALL)
        assert f"127.0.0.1:{server.port}" in str(caught.value)
    finally:
        server.shutdown()


def num_connections(port):
    """Open ones to a port of this machine, from Linux's tables."""
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_a_damaged_manifest_leaves_no_connection_open():
    texts = dict.fromkeys(("recipe", "dataset", "fingerprint"), "x")
    nothing = dict.fromkeys(("labels", "mixture", "tree"))
    opened = texts | nothing | {"num_samples": 9, "class_names": ["a"], "manifest": {"version": 1}}
    server = Liar(hello=HELLO | {"stack": decode_stack("cpu")}, open=opened)
    try:
        with pytest.raises(DataError, match="manifest") as caught:
            RemoteLoader(f"grpc://127.0.0.1:{server.port}", **SMALL)
        wait_until(lambda: num_connections(server.port) == 0)
        del caught  # it held the loader until now, so that nothing else closed it
    finally:
        server.shutdown()


def test_a_server_that_sends_what_was_not_asked_for_is_asked_no_more_and_the_others_are(
    packed, monkeypatch, caplog
):
    servers = [BatchServer(Desk({"small": ServedSet(packed)}, num_threads=1)) for _ in range(2)]
    liar = servers[0]
    honest = liar.desk.batch

    def lying(*args):
        made = honest(*args)
        made.rows = column(made.rows, "classes", pa.array([b"\x7f" * 8] * len(made.rows), pa.binary(8)))
        return made

    monkeypatch.setattr(liar.desk, "batch", lying)
    monkeypatch.setattr(liar, "_proof", None)
    try:
        addresses = [server.address for server in servers]
        with RemoteLoader(addresses, **SMALL) as remote, Loader(packed, **SMALL) as local:
            assert_same_batches(remote, local)
        assert (
            f"{liar.address} is asked no more: {liar.address}: expected a batch of the recipe" in caplog.text
        )
        with (
            RemoteLoader(liar.address, **SMALL) as remote,
            pytest.raises(DataError, match="expected a batch of the recipe, found classes"),
        ):
            next(iter(remote))
    finally:
        for server in servers:
            server.close(5)
