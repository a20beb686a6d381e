"""What a build of tags has done so far, in a folder, so that a build that was killed goes on.

    OUT.tags-work/
        build-key               of source, options and version: a folder of another build is emptied
        count-000000.npz ...    what counting fifty blocks gave, each
        lines.part bad.part     lines of the result, and of the ledger, so far
        written.json            how many blocks are in them, and how long they were then; with a checksum

The folder goes when the build is finished, or ends before there is anything worth keeping.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .destination import Destination, LocalDestination, RemoteDestination
from .errors import naming
from .files import (
    LOCK_NAME,
    TEMPORARY_SUFFIX,
    canonical_json,
    hold_folder,
    open_named,
    replace_durably,
    sha256_hex,
    write_atomically,
)
from .tags_tasks import BlockCounts, BlockLines, BlockStats

WORK_SUFFIX = ".tags-work"
# 100,000 images of a list, 50 queries of WebVision: what a kill costs at most, some seconds of a core.
BLOCKS_KEPT = 50
_EXAMPLES = 10
_KEY, _WRITTEN = "build-key", "written.json"
_LINES = (f"lines{TEMPORARY_SUFFIX}", f"bad{TEMPORARY_SUFFIX}")
# With what is left where a small file was being written. Nothing of a user's is called so.
_OURS = ("count-??????.npz*", f"{_WRITTEN}*", f"{_KEY}*", *_LINES)


@dataclass
class Counted:
    """What counting some blocks gave; see BlockCounts.

    Attributes:
        images: candidate tag to images.
        sizes: records of each block.
        hashes: of these records, block by block.
    """

    images: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    hashes: list[np.ndarray] = field(default_factory=list)
    num_validation: int = 0
    num_problems: int = 0
    num_textless: int = 0
    examples: list[str] = field(default_factory=list)

    def add_block(self, block: BlockCounts) -> None:
        self.images.update(block.images)
        self.sizes.append(len(block.hashes))
        self.hashes.append(block.hashes)
        self._add_numbers(block)

    def add_part(self, part: Counted) -> None:
        """Add what counting the blocks behind these gave, but for its tags, which would not fit into memory."""
        self.sizes += part.sizes
        self.hashes += part.hashes
        self._add_numbers(part)

    def _add_numbers(self, other: BlockCounts | Counted) -> None:
        self.num_validation += other.num_validation
        self.num_problems += other.num_problems
        self.num_textless += other.num_textless
        self.examples += other.examples[: _EXAMPLES - len(self.examples)]

    @property
    def num_images(self) -> int:
        return sum(self.sizes)

    def joined_hashes(self) -> np.ndarray:
        """uint64, of all records in order."""
        return np.concatenate([np.empty(0, np.uint64), *self.hashes])

    def repeats(self) -> dict[int, tuple[int, ...]]:
        """Block to the places of its records that stood in the source before."""
        hashes = self.joined_hashes()
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        again = order[1:][ordered[1:] == ordered[:-1]]
        starts = np.concatenate([[0], np.cumsum(np.array(self.sizes, np.int64))])
        repeats: dict[int, list[int]] = {}
        for place in np.sort(again).tolist():
            block = int(np.searchsorted(starts, place, side="right")) - 1
            repeats.setdefault(block, []).append(place - int(starts[block]))
        return {block: tuple(places) for block, places in repeats.items()}

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        numbers = (self.num_validation, self.num_problems, self.num_textless)
        facts = json.dumps([self.images, numbers, self.examples]).encode()
        np.savez(
            file,
            sizes=np.array(self.sizes, np.int64),
            hashes=self.joined_hashes(),
            facts=np.frombuffer(facts, np.uint8),
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Counted:
        """Raises any of zipfile's, NumPy's and JSON's errors for what `to_bytes` does not write."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            sizes, hashes, facts = (arrays[name] for name in ("sizes", "hashes", "facts"))
        if sizes.dtype != np.int64 or hashes.dtype != np.uint64 or sizes.sum() != len(hashes):
            raise ValueError(
                f"expected {sizes.sum()} hashes of 8 bytes, found {len(hashes)} of {hashes.dtype}"
            )
        images, (validation, problems, textless), examples = json.loads(facts.tobytes())
        images, examples = dict(images), [str(example) for example in examples]
        numbers = [*sizes.tolist(), *images.values(), validation, problems, textless]
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError("expected numbers from 0")
        return cls(Counter(images), sizes.tolist(), [hashes], validation, problems, textless, examples)


class TagsWork:
    """A build's folder; see the top of this file.

    Args:
        folder: that is there, held by this process.
        key: of source, options and version; None where a source cannot be told from a changed one, so that nothing is
            kept.
    """

    def __init__(self, folder: Path, key: str | None) -> None:
        self.folder, self._keeps = folder, key is not None
        file = folder / _KEY
        if key is None or not file.is_file() or file.read_text("ascii", "replace") != key:
            self.clear()
            write_atomically(file, (key or "").encode("ascii"))

    def clear(self) -> None:
        """Drop all that is kept."""
        for pattern in _OURS:
            for path in self.folder.glob(pattern):
                path.unlink()

    @property
    def is_worth_keeping(self) -> bool:
        return self._count_file(0).exists()

    def _count_file(self, number: int) -> Path:
        return self.folder / f"count-{number:06d}.npz"

    def counted(self) -> Iterator[Counted]:
        """What earlier runs counted, in the order of the source."""
        number = 0
        while (path := self._count_file(number)).exists():
            data = path.read_bytes()
            try:
                part = Counted.from_bytes(data)
            except Exception:  # a damaged disk: counted again, and written over
                return
            yield part
            number += 1

    def keep_counted(self, number: int, part: Counted) -> None:
        """Keep the number-th fifty blocks."""
        if self._keeps:
            write_atomically(self._count_file(number), part.to_bytes())

    @contextmanager
    def writing(self, key: str) -> Iterator[WrittenLines]:
        """The lines of the result, where an earlier run left off if it wrote for the same `key`."""
        written = WrittenLines(self.folder, key if self._keeps else None)
        with written.bad, written.lines:  # both are closed, also where a full disk lets one not be
            yield written


class WrittenLines:
    """Lines of the result and of the ledger, so far.

    Attributes:
        lines, bad: files that are open at their ends.
        num_blocks: blocks of the source that are in them.
        stats: of these.
    """

    def __init__(self, folder: Path, key: str | None) -> None:
        self._folder, self._key = folder, key
        self.num_blocks, self.stats = 0, BlockStats()
        sizes = [0, 0]
        if key is not None and (kept := self._kept(key)) is not None:
            self.num_blocks, sizes, self.stats = kept
        self.lines, self.bad = (self._opened(name, size) for name, size in zip(_LINES, sizes, strict=True))

    def _kept(self, key: str) -> tuple[int, list[int], BlockStats] | None:
        """What an earlier run noted of its lines; None, so that they are written again, where the note is damaged."""
        try:
            found = json.loads((self._folder / _WRITTEN).read_bytes())
            sha256 = found.pop("sha256")
            if found["key"] != key or sha256 != sha256_hex(canonical_json(found)):
                return None
            lengths = [(self._folder / name).stat().st_size for name in _LINES]
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if any(size > length for size, length in zip(found["sizes"], lengths, strict=True)):
            return None  # one of them has been published
        stats = found["stats"]
        stats["by_source"] = Counter(stats["by_source"])
        return found["num_blocks"], found["sizes"], BlockStats(**stats)

    def _opened(self, name: str, size: int) -> BinaryIO:
        file = open_named(self._folder / name, "a")  # closed by `writing`
        with naming(file.name):
            file.truncate(size)  # what came after the last note of it is written again
        return file

    def add(self, block: BlockLines) -> None:
        """Write a block's lines; every fifty blocks they are noted."""
        self.lines.write(block.lines)
        self.bad.write(block.ledger)
        self.stats.add(block.stats)
        self.num_blocks += 1
        if self.num_blocks % BLOCKS_KEPT == 0 and self._key is not None:
            sizes = [_flushed(self.lines), _flushed(self.bad)]
            write_atomically(
                self._folder / _WRITTEN, _note(self._key, self.num_blocks, sizes, vars(self.stats))
            )

    def publish(self, destination: Destination, lines_name: str, bad_name: str) -> None:
        """Give both their names, the result last; each appears whole, and an empty one does not."""
        for file, path, name in (
            (self.bad, self._folder / _LINES[1], bad_name),
            (self.lines, self._folder / _LINES[0], lines_name),
        ):
            if _flushed(file) == 0:
                destination.remove(name)
            elif isinstance(destination, RemoteDestination):
                destination.upload(name, str(path))
            elif isinstance(destination, LocalDestination) and (
                path.stat().st_dev == destination.path.stat().st_dev  # on one disk
            ):
                replace_durably(path, destination.path / name)
            else:
                _copy(path, destination, name)


def _note(key: str, num_blocks: int, sizes: list[int], stats: dict[str, Any]) -> bytes:
    note = {"key": key, "num_blocks": num_blocks, "sizes": sizes, "stats": stats}
    return json.dumps({**note, "sha256": sha256_hex(canonical_json(note))}).encode("ascii")


def _flushed(file: BinaryIO) -> int:
    """Bytes of a file, all of them on disk."""
    file.flush()
    with naming(file.name):
        os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size


def _copy(path: Path, destination: Destination, name: str) -> None:
    staged = destination.stage(name)
    try:
        with open(path, "rb") as file:
            shutil.copyfileobj(file, staged.file)
        staged.publish()
    finally:
        staged.discard()


@contextmanager
def hold_work(folder: Path | None, key: str | None) -> Iterator[TagsWork]:
    """The folder of a build; None is one in TMPDIR, from which nothing goes on.

    Raises:
        UsageError: another process holds it.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="softshard-tags-") as made:
            yield TagsWork(Path(made), None)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with hold_folder(folder):
        work = TagsWork(folder, key)
        try:
            yield work
        except BaseException:
            if not work.is_worth_keeping:
                _remove(work)
            raise
        _remove(work)


def _remove(work: TagsWork) -> None:
    """Remove what a build made; of a folder that the user named all else stays."""
    work.clear()
    (work.folder / LOCK_NAME).unlink(missing_ok=True)
    if not any(work.folder.iterdir()):
        work.folder.rmdir()
