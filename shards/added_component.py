"""A component that is added to every sample of a data set: shards are copied with it, one by one, and a run continues.

Nothing is decoded and everything else keeps its bytes. A plan says what is added, a receipt that a shard is finished;
sidecars and manifest come last. Label maps (labelmap_side.py), a teacher's levels and pseudo labels (pseudo_labels.py)
are added like this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .destination import Destination
from .errors import DataError
from .images import pixel_stack
from .manifest import Manifest
from .reader import Sample, read_samples
from .receipts import read_receipts, settle_content, write_receipt
from .schema import CLASSES_NAME, MAX_TREE_BYTES, RECEIPTS_DIR, TREE_NAME, VOCABULARY_NAME, sorted_suffixes
from .shard_files import dataset_name, inside, open_shard, read_small
from .storage import open_storage
from .text_limits import counted
from .writer import ShardRecord, ShardWriter


@dataclass(frozen=True)
class NewComponent:
    """A component that every sample gets.

    Attributes:
        suffix: its name.
        entry: what the manifest says of it: fields of Manifest.
        packages: what compresses it; another version may give other bytes.
    """

    suffix: str
    entry: Mapping[str, Any]
    packages: tuple[str, ...]

    def beside(self, source: Manifest) -> tuple[str, ...]:
        """The components of a data set once it has this one."""
        return tuple(sorted_suffixes({*source.components, self.suffix}))

    def versions(self) -> dict[str, str]:
        """Of the packages."""
        stack = pixel_stack()
        return {package: stack[package] for package in self.packages}

    def to_json(self) -> dict[str, Any]:
        """What a plan says of it."""
        return {name: value.to_json() for name, value in self.entry.items()} | self.versions()


def check_sidecars(dataset: str | Path, source: Manifest) -> None:
    """Refuse a data set without a file that is copied at the end.

    Args:
        dataset: as `dataset_path` gives it.
        source: its manifest.

    Raises:
        DataError: with the file's name; or its server is away.
    """
    storage = open_storage(dataset)
    for name in _sidecars(source):
        try:
            storage.read(name, 0, 1, 1)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            why = error.strerror or error
            found = "none; it was not copied whole" if missing else f"one that cannot be read: {why}"
            raise DataError(
                f"{dataset_name(inside(dataset, name))}: expected a file of the data set, found {found}. "
                f"Run: softshard verify {dataset_name(dataset)}"
            ) from error


def settle(target: Destination, content: dict[str, Any], source: Manifest) -> tuple[str, set[str]]:
    """Write `plan.json`, or compare it with that of an earlier run; returns its SHA-256 and the shards that are done.

    Raises:
        UsageError: the destination holds something else, or the work of another call.
        DataError: the earlier plan is damaged.
    """
    plan_sha256 = settle_content(target, content)
    target.folder(RECEIPTS_DIR).make()
    names = [record.name for record in source.shards]
    receipts = read_receipts(target, names, plan_sha256)
    return plan_sha256, {
        name for name, receipt in zip(names, receipts, strict=True) if receipt and receipt["record"]
    }


def attach(
    target: Destination,
    record: ShardRecord,
    samples: Iterable[Sample],
    suffixes: Sequence[str],
    added: str,
    values: Iterable[tuple[str, bytes]],
    plan_sha256: str,
) -> None:
    """Write one shard, with its receipt: the source's samples with the new component.

    Args:
        target: where to write.
        record: the source's shard.
        samples: of that shard, in its order; its bytes were checked (`check_hash`).
        suffixes: components of the result; the new one alone writes a side shard.
        added: which of them is new; one of this name that the samples have is replaced.
        values: key and encoded value of every sample, in the shard's order.
        plan_sha256: of the run.

    Raises:
        DataError: the values are of other samples.
    """
    rest = iter(values)
    with ShardWriter(target.at(record.name), suffixes) as writer:
        for sample in samples:
            key, data = next(rest, ("", b""))
            if key != sample.key:
                raise DataError(
                    f"{record.name}: expected the component {added!r} of sample {sample.key!r} next, found that of {key!r}; "
                    "they belong to another data set"
                )
            parts = {**sample.parts, added: data}
            writer.write(key, {suffix: parts[suffix] for suffix in suffixes})
    assert writer.record is not None
    write_receipt(target, record.name, {"plan": plan_sha256, "record": writer.record.to_json()})


def finish(
    target: Destination,
    dataset: str | Path,
    source: Manifest,
    component: NewComponent,
    plan_sha256: str,
    save: Callable[[tuple[ShardRecord, ...]], object] | None = None,
) -> Manifest:
    """Write what comes last: sidecars and manifest, or what `save` writes in their stead.

    Returns:
        The data set's manifest with the new component (which is not written where `save` is given).

    Raises:
        DataError: a shard is missing: the processes of the run did not write to one place.
    """
    receipts = read_receipts(target, [record.name for record in source.shards], plan_sha256)
    records = tuple(ShardRecord(**receipt["record"]) for receipt in receipts if receipt)
    if len(records) != len(source.shards):
        raise DataError(
            f"{target.name}: expected {counted(len(source.shards), 'shard')}, found {len(records):,}; is it a place "
            "that all processes of the run share? Run the same command again: it continues"
        )
    made = replace(
        source,
        components=component.beside(source),
        pixel_stack={**source.pixel_stack, **component.versions()},
        shards=records,
        **component.entry,
    )
    target.remove_leftovers()
    if save is not None:
        save(records)
        return made
    for name in _sidecars(source):
        target.write(name, read_small(dataset, name, max(MAX_TREE_BYTES, 4 * source.num_samples + 4096)))
    made.save(target)
    return made


def check_hash(name: str, record: ShardRecord, sha256: str) -> None:
    """Refuse a shard whose bytes have changed: they would be given a new and valid hash.

    Args:
        name: of the shard, for messages.
        record: what the manifest says of it.

    Raises:
        DataError: they are others.
    """
    if sha256 != record.sha256:
        raise DataError(
            f"{name}: expected SHA-256 {record.sha256[:12]}, found {sha256[:12]}; bytes have changed. "
            f"Run: softshard verify {name}"
        )


@contextmanager
def read_checked(dataset: str | Path, record: ShardRecord) -> Iterator[Iterator[Sample]]:
    """The samples of a shard that has been read once and is whole; one behind a URL is copied while they are read.

    Args:
        dataset: as `dataset_path` gives it.
        record: what its manifest says of the shard.

    Raises:
        DataError: missing, of other bytes, or its server is away.
    """
    name = dataset_name(inside(dataset, record.name))
    with ExitStack() as stack:
        try:
            shard = stack.enter_context(open_shard(dataset, record))
        except FileNotFoundError as error:
            raise DataError(
                f"{name}: expected a shard of the data set, found none. Copy the data set again"
            ) from error
        check_hash(name, record, shard.sha256)
        yield read_samples(shard.file, record.name)


def _sidecars(manifest: Manifest) -> list[str]:
    tree = [TREE_NAME] if manifest.tree_sha256 else []
    return [CLASSES_NAME, *tree, *([VOCABULARY_NAME] if manifest.vocabulary_sha256 else [])]
