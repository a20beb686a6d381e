"""What servers and clients of the data service say to each other, either of whom may mean harm."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from softshard.loaders import Augment, CutMix, LabelPooling, Subset
from softshard.loaders.batch import Batch
from softshard.loaders.faults import BadSample
from softshard.loaders.labels import Labels
from softshard.loaders.pooling import SparseTargets
from softshard.loaders.remote_source import RemoteSource
from softshard.loaders.service_access import read_token
from softshard.loaders.service_address import split_address
from softshard.loaders.service_answer import (
    COUNTS_FIELDS,
    HELLO_FIELDS,
    OPENED_FIELDS,
    VOCABULARY_FIELDS,
    AnswerCheck,
    check_fields,
    read_answer,
)
from softshard.loaders.service_desk import Desk, ServedSet
from softshard.loaders.service_limits import check_size
from softshard.loaders.service_list import ServerList, find_servers
from softshard.loaders.service_memory import Handle, HostProof, SegmentStore, read_proof, read_rows
from softshard.loaders.service_protocol import (
    OPEN,
    PROTOCOL,
    Refusal,
    Ticket,
    check_protocol,
    check_stack,
    read_object,
)
from softshard.loaders.service_recipe import BatchRecipe, LabelData
from softshard.loaders.service_wire import encode_batch, read_meta
from softshard.shards import Manifest, SubsetFile
from softshard.shards.errors import DataError
from softshard.shards.subset_file import ClassGroup

from . import whole_files as whole
from .judge import Target
from .mutate import BINARY, JSON, TEXT
from .targets_data_set import in_file
from .targets_runs import of_text

WHERE = "grpc://a:1"
TOKEN = "0123456789abcdef0123456789abcdef"
NUM, SIZE = 4, 6
RECIPE = BatchRecipe(
    "small", NUM, augment=Augment(size=SIZE), targets=("original", "relabel"), keep_targets=2
)
STACK = {"softshard": "1", "decoder": "cpu"}


@lru_cache(maxsize=1)
def _desk() -> Desk:
    """A server's, with the whole data set."""
    folder = Path(mkdtemp(prefix="softshard-fuzz-"))
    for name, data in whole.packed().train.items():
        (folder / name).write_bytes(data)
    return Desk({"small": ServedSet(folder)}, num_threads=1)


def _recipe(data: bytes, folder: Path) -> None:
    """Everything that a server does with a recipe before it opens the data set for it."""
    asked = read_object(data, 2**26, OPEN)
    check_protocol(asked.get("protocol"), "client")
    recipe = BatchRecipe.from_json(asked.get("recipe"))
    desk = _desk()
    check_size(recipe, desk.limits)
    desk._find(recipe)
    if recipe.labels is not None:
        recipe.labels.to_labels()
    if BatchRecipe.from_json(json.loads(json.dumps(recipe.to_json()))).fingerprint != recipe.fingerprint:
        raise AssertionError("a recipe that is another when it is read again")


def _refusal(data: bytes, folder: Path) -> None:
    refusal = Refusal.from_bytes(data)
    if refusal is not None:
        if not 0 <= refusal.retry_s <= 60 or len(refusal.message) > 4000:
            raise AssertionError(f"a server that sends away for {refusal.retry_s} s")
        str(refusal.to_error(WHERE))


def _hello(data: bytes, folder: Path) -> None:
    hello = read_answer(data, {}, WHERE)
    check_protocol(hello.get("protocol"), WHERE)
    hello = {"request_bytes": None} | hello
    check_fields(hello, HELLO_FIELDS, WHERE)
    check_stack(STACK, hello["stack"], WHERE)
    read_proof(Handle.from_json(hello.get("memory")))


def _opened(data: bytes, folder: Path) -> None:
    """What a loader makes of a server's word for the data set."""
    facts = read_answer(data, OPENED_FIELDS, WHERE)
    pool: Any = SimpleNamespace(facts=facts)
    source = RemoteSource.of(f"{WHERE}/small", pool)
    AnswerCheck.of(RECIPE, source.labels, source.manifest)


def _answer(fields: dict[str, Any]) -> Callable[[bytes, Path], Any]:
    return lambda data, folder: read_answer(data, fields, WHERE)


@lru_cache(maxsize=1)
def _check() -> AnswerCheck:
    manifest = Manifest.from_json(json.loads(whole.packed().train["manifest.json"]))
    return AnswerCheck.of(RECIPE, Labels(tuple(whole.TREE.classes), whole.TREE), manifest)


def _rows(data: bytes, folder: Path) -> None:
    """A batch from a socket. What Arrow itself refuses stands for no answer."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
            read_meta(stream.schema)
            rows = stream.read_next_batch()
    except DataError as error:
        raise DataError(f"{WHERE}: {error}") from error
    except (pa.ArrowException, OSError, StopIteration):
        return
    _check()(rows, WHERE)


def _rows_in_memory(data: bytes, folder: Path) -> None:
    """The same in shared memory: images first, and from a fixed place on the stream of the others."""
    try:
        rows = read_rows(memoryview(bytearray(data)), _stream_at())
    except DataError as error:
        raise DataError(f"{WHERE}: {error}") from error
    _check()(rows, WHERE)


def _batch() -> Batch:
    classes = torch.tensor([0, 2, 1, -1])
    sparse = SparseTargets(torch.rand(NUM, 2), torch.tensor([[0, 1]] * NUM))
    return Batch(
        images=torch.arange(NUM * SIZE * SIZE * 3, dtype=torch.uint8)
        .reshape(NUM, SIZE, SIZE, 3)
        .permute(0, 3, 1, 2),
        classes=classes,
        levels=torch.from_numpy(whole.TREE.vectors()[[0, 2, 1, 1]].astype(np.int64)),
        targets=sparse,
        crops=torch.rand(NUM, 4),
        flips=torch.tensor([True, False, True, False]),
        keys=["a", "caf\u00e9", "", "b" * 80],
        valid=torch.tensor([True, True, False, True]),
        more_targets={"relabel": sparse},
    )


@lru_cache(maxsize=1)
def _sent() -> pa.RecordBatch:
    return encode_batch(_batch(), [BadSample(3, "train-000000.tar", "", "cut short")])


def _streamed(rows: pa.RecordBatch) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, rows.schema) as stream:
        stream.write_batch(rows)
    return file.getvalue()


@lru_cache(maxsize=1)
def _in_segment() -> tuple[bytes, int]:
    """A segment's bytes, and where its stream begins."""
    put = SegmentStore(2**24).put(_sent())
    assert put is not None
    handle = put[0]
    return os.pread(handle.descriptor, handle.size, 0), handle.stream


def _stream_at() -> int:
    return _in_segment()[1]


@lru_cache(maxsize=1)
def _proof() -> HostProof:
    return HostProof()


def _addresses(text: str) -> None:
    find_servers(text)


def _token(path: str) -> None:
    """What is no token is not shown."""
    os.chmod(path, 0o600)
    try:
        read_token(path)
    except ValueError as error:
        if TOKEN[:8] in str(error):
            raise AssertionError("a token that is shown") from error
        raise


def _requests() -> tuple[bytes, ...]:
    groups = (ClassGroup("fish", whole.CLASSES[:2]), ClassGroup.single(whole.CLASSES[2]))
    chosen = SubsetFile(groups, {}, {"name": "train"})
    recipes = (
        RECIPE,
        BatchRecipe(
            None, 2, world_size=2, lanes=2, seed=3, targets=LabelPooling(grid=(2, 3), class_map=(0, -1, 1)),
            labels=LabelData.of(whole.TREE), subset=Subset(classes=whole.CLASSES[:2], fraction=0.5), balance=0.5,
            augment=Augment(size=SIZE, cutmix=CutMix()), dtype="float16",
        ),
        BatchRecipe("small", 2, labels=LabelData.of(chosen), subset=Subset(keys=("a", "b"))),
    )  # fmt: skip
    return tuple(
        json.dumps({"protocol": PROTOCOL, "recipe": recipe.to_json()}).encode() for recipe in recipes
    )


def targets() -> list[Target]:
    train = whole.packed().train
    hello = {"protocol": PROTOCOL, "softshard": "1", "stack": STACK, "data_sets": {"small": "f" * 64}}
    opened = {
        "recipe": RECIPE.fingerprint, "dataset": "small", "fingerprint": "f" * 64, "num_samples": 9, "labels": None,
        "mixture": None, "class_names": list(whole.TREE.classes), "tree": whole.TREE.to_json(),
        "manifest": json.loads(train["manifest.json"]),
    }  # fmt: skip
    _in_segment()
    _desk()
    return [
        Target("ticket", lambda data, _: Ticket.from_bytes(data), (Ticket("f" * 64, 1, 8, 0, "0" * 64).to_bytes(),),
            JSON, "ticket"),
        Target("request to open a recipe", _recipe, _requests(), JSON),
        Target("refusal", _refusal, (Refusal("busy", "expected at most 8", 0.1).to_bytes(),), JSON),
        Target("answer to hello", _hello,
            (json.dumps(hello | {"memory": _proof().handle.to_json()}).encode(),), JSON, WHERE),
        Target("answer to open", _opened, (json.dumps(opened).encode(),), JSON, WHERE),
        Target("counts of classes", _answer(dict(COUNTS_FIELDS)), (b'{"counts": [1, 2, 3]}',), JSON, WHERE),
        Target("answered vocabulary", _answer(dict(VOCABULARY_FIELDS)), (b'{"tags": ["a", "b"], "images": [1, 2]}',),
            JSON, WHERE),
        Target("rows of a batch", _rows, (_streamed(_sent()),), BINARY, WHERE),
        Target("rows in shared memory", _rows_in_memory, (_in_segment()[0],), BINARY, WHERE),
        Target("list of servers", in_file("servers.json", lambda path: ServerList(Path(path)).read()),
            (b'{"servers": ["grpc://10.0.0.7:41234", "grpc+tls://b:2"]}',), JSON, "servers.json"),
        Target("addresses of servers", of_text(_addresses), (b"grpc://a:1/train,grpc+tls://[::1]:2/train",), TEXT,
            "data service"),
        Target("address to listen on", of_text(split_address), (b"127.0.0.1:7070", b"[::1]:7070"), TEXT,
            "an address"),
        Target("token", in_file("token", _token), (TOKEN.encode() + b"\n",), TEXT, "token"),
    ]  # fmt: skip
