"""What softshard keeps for itself, and options that are written as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from softshard.loaders.against import parse_peers
from softshard.loaders.augment_text import parse_augment
from softshard.loaders.state import bad_samples, check_state
from softshard.loaders.tar_index import TarIndex, index_tar, split_braces
from softshard.shards.destination import open_destination
from softshard.shards.earlier_plan import check_earlier_plan
from softshard.shards.listing_file import KeptListing
from softshard.shards.receipts import read_receipts
from softshard.shards.schema import LISTING_NAME
from softshard.shards.similarities import Measures
from softshard.shards.sources import open_source
from softshard.shards.storage import is_remote, open_storage, public_name
from softshard.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from softshard.training.recipe_presets import with_settings
from softshard.training.recipes import relabel

from . import whole_files as whole
from .judge import Target
from .mutate import BINARY, JSON, TEXT
from .targets_data_set import in_archive, in_file, pickles

_STATE = {
    "version": 1, "fingerprint": "f" * 64, "seed": 0, "epoch": 2, "taken": 5, "global_batch": 8, "lanes": 1,
    "window": 100,
    "shuffle": True, "labels": None, "subset": None, "balance": None, "mixture": None, "bad": [1, 4],
}  # fmt: skip


def of_text(parse: Callable[[str], Any]) -> Callable[[bytes, Path], Any]:
    """Calls a parser of options."""
    return lambda data, folder: parse(data.decode("utf-8", "surrogateescape"))


def _receipt(data: bytes, folder: Path) -> None:
    packed = whole.packed()
    for name in ("train-000000.tar", "train-000000.idx"):
        (folder / name).write_bytes(packed.train[name])
    (folder / "receipts").mkdir(exist_ok=True)
    (folder / "receipts" / "train-000000.tar.json").write_bytes(data)
    plan = json.loads(packed.run["plan.json"])["sha256"]
    read_receipts(open_destination(folder), ["train-000000.tar"], plan, ("classes", "read", "bad"))


def _plan(data: bytes, folder: Path) -> None:
    plan = json.loads(whole.packed().run["plan.json"])
    job = SimpleNamespace(pixel_stack=plan["pixel_stack"], map_shape=whole.MAP_SHAPE)
    ours: Any = SimpleNamespace(sha256=plan["sha256"])
    check_earlier_plan("plan.json", data, ours, job, plan["options"])  # pyright: ignore[reportArgumentType]


def _listing(data: bytes, folder: Path) -> None:
    """A kept listing that is damaged is made again."""
    _, kept = _listed(folder)
    (folder / "out" / LISTING_NAME).write_bytes(data)
    kept.load()


def _listed(folder: Path) -> tuple[Path, KeptListing]:
    source, out = folder / "list.csv", folder / "out"
    source.write_text("path,label\na/b.jpg,a\nc/d.jpg,c\n")
    out.mkdir(exist_ok=True)
    return source, KeptListing(open_destination(out), source, None)


@lru_cache(maxsize=1)
def _whole_listing() -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        source, kept = _listed(Path(folder))
        kept.save(open_source(source))
        (file,) = [path for path in Path(folder, "out").rglob("*") if path.is_file()]
        return file.read_bytes()


def _state(data: bytes, folder: Path) -> None:
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):  # whoever saved it parses it
        return
    if isinstance(state, dict):
        check_state(state, _STATE, 100)
        bad_samples(state)


def _tar_index(data: bytes, folder: Path) -> None:
    with suppress(ValueError, TypeError):  # what its caller takes for an index that is to be made again
        TarIndex.from_bytes(data)


def _index_tar(path: str) -> None:
    with open(path, "rb") as file:
        index_tar(file, Path(path).name)


def _url(text: str) -> None:
    """No user, password or signature is shown, whatever else is in a URL."""
    for url in (
        f"http://u:SECRET@{text}?sig=SECRET",
        f"simplecache::s3://SECRET@{text}",
        f"tar://{text}::https://SECRET@h/{text}",
    ):
        if "SECRET" in public_name(url):
            raise AssertionError(f"a secret that is shown: {public_name(url)!r} of {url!r}")
    is_remote(text)
    if "://" not in text and "::" not in text:
        open_storage(text)


@lru_cache(maxsize=1)
def _checkpoint() -> bytes:
    from tempfile import TemporaryDirectory

    import torch

    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], 0.1)
    with TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.pt")
        fields: dict[str, Any] = dict.fromkeys(Checkpoint.__dataclass_fields__)
        fields |= {
            "model_name": "test_resnet",
            "recipe": relabel(),
            "model": {"weight": parameter.detach()},
            "step": 17,
            "epoch": 2,
        }
        fields |= {
            "optimizer": optimizer.state_dict(),
            "class_names": list(whole.CLASSES),
            "classes_sha256": "a" * 64,
        }
        fields |= {
            "loader": dict(_STATE),
            "tag_names": [],
            "without": [],
            "rng": [],
            "history": [],
            "skipped": 0,
        }
        fields |= {"loss_sum": 0.0, "loss_steps": 0}
        save_checkpoint(path, Checkpoint(**fields))
        return path.read_bytes()


def targets() -> list[Target]:
    packed = whole.packed()
    tars = (
        whole.tar(
            {
                f"{i}.{suffix}": data
                for i in range(2)
                for suffix, data in (("jpg", whole.jpeg(i)), ("cls", b"1"))
            }
        ),
        packed.train["train-000000.tar"],
    )
    index = TarIndex(("a", "b"), np.array([512, 2048]), np.array([10, 20]), ("0", "cat"), 1)
    return [
        Target("receipt", _receipt, (packed.receipts["train-000000.tar.json"],), JSON),
        Target("plan.json", _plan, (packed.run["plan.json"],), JSON, "plan.json"),
        Target("kept listing", _listing, (_whole_listing(),), BINARY),
        Target("loader state", _state, (json.dumps(_STATE).encode(),), JSON, "loader state"),
        Target("kept tar index", _tar_index, (index.to_bytes(),), BINARY),
        Target("somebody's tar", in_file("a.tar", _index_tar), tars, BINARY, "a.tar"),
        Target("checkpoint", in_file("checkpoint.pt", lambda path: load_checkpoint(Path(path))),
            (_checkpoint(),), BINARY,
               "checkpoint.pt"),
        Target("checkpoint behind its checksum", in_archive(_checkpoint(), "checkpoint.pt",
            lambda path: load_checkpoint(Path(path))),
               pickles(_checkpoint()), BINARY, "checkpoint.pt"),
        Target("braces", of_text(split_braces), (b"s3://b/train-{000000..000012}.tar",
            b"/d/{a,b}{1..3}.tar"), TEXT),
        Target("URL", of_text(_url), (b"host/x", b"bucket/in21k/train-000000.tar", b"1.2.3.4:80/a b"), TEXT),
        Target("peers", of_text(parse_peers), (b"webdataset,ffcv=/opt/python",), TEXT),
        Target("augment", of_text(parse_augment), (b"color-jitter:0.4+lighting:0.1+cutmix:1", b"none"), TEXT),
        Target("settings", of_text(lambda text: with_settings(relabel(), text.split(";"))),
            (b"lr=0.1;epochs=3;ema_decay=none",), TEXT),
        Target("measures", of_text(Measures.parse), (b"wup=0.7,text=0.3",), TEXT),
    ]  # fmt: skip
