"""Imports published label maps: one file of torch.save's for every image, as ReLabel and TokenLabeling give them.

    SRC/n01440764/n01440764_10026.pt -> DST/n01440764/n01440764_10026.lmap

The result is laid out for `pack --label-maps`. A file that is there and whole is kept, so a run that was killed
continues.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .destination import LocalDestination
from .errors import DataError, ImageError, MissingExtraError, UsageError, check_choice, check_share, naming
from .files import LOCK_NAME, hold_folder, temporary_beside, write_atomically
from .labelmap import decode_label_map, encode_label_map, read_map_header
from .labelmap_encode import SCORE_ENCODINGS
from .labelmap_published import HALF_EXACT, read_published_map
from .ledger import bad_limit, too_many, write_ledger
from .parallel import in_processes, num_workers
from .progress import progress_bar
from .schema import MAX_CLASS_ID, MAX_PLAN_BYTES
from .shard_task import BadInput, map_path, read_map_file
from .text_limits import some

IMPORT_NAME = "import.json"  # what the files in a folder were made with

_CHUNK = 256  # files of a task
_SUSPECT_IDS = 64  # ids above HALF_EXACT of which none is odd: not by chance
_PROBED = 100  # files that are tried for the shape of the first good one

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ImportOptions:
    """How published maps are converted.

    Attributes:
        num_classes: C of the teacher; ids are below it.
        transpose: swap rows and columns, for maps that were stored the other way round.
        scores: `float16`, or `uint8` (affine per map).
        max_bad: share of bad files that stops the run; ten are always allowed, with 0 none.
    """

    num_classes: int = 1000
    transpose: bool = False
    scores: str = "float16"
    max_bad: float = 0.001

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= MAX_CLASS_ID + 1:
            raise UsageError(
                f"num_classes: expected 1 to {MAX_CLASS_ID + 1} classes, found {self.num_classes}"
            )
        check_choice("scores", self.scores, SCORE_ENCODINGS)
        check_share("max_bad", self.max_bad)


@dataclass(frozen=True)
class ImportSummary:
    """What a run did. `read == written + kept + bad` always holds.

    Attributes:
        read: `.pt` files found.
        written: maps written by this run.
        kept: maps that were there.
        bad: files in the ledger.
        shape: (K, P, Q) of all maps.
        mean_bytes: of a map.
    """

    read: int
    written: int
    kept: int
    bad: int
    shape: Shape
    mean_bytes: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Counts:
    """What became of some files."""

    written: int = 0
    kept: int = 0
    map_bytes: int = 0
    high_ids: int = 0  # above HALF_EXACT
    inexact_ids: int = 0  # of those, which half precision could not hold
    bad: list[BadInput] = field(default_factory=list)

    def add(self, other: _Counts) -> None:
        self.written += other.written
        self.kept += other.kept
        self.map_bytes += other.map_bytes
        self.high_ids += other.high_ids
        self.inexact_ids += other.inexact_ids
        self.bad += other.bad


def import_label_maps(
    source: str | Path,
    destination: str | Path,
    options: ImportOptions | None = None,
    *,
    workers: int | None = None,
) -> ImportSummary:
    """Convert a folder of published label maps.

    Args:
        source: folder with `.pt` files at any depth.
        destination: a new folder, or that of an earlier run with the same options, which is continued.
        options: see ImportOptions.
        workers: processes; by default one a core.

    Raises:
        DataError: no map can be read, too many are bad, or the ids have been in half precision.
        UsageError: the destination holds something else, or another process is writing there.
        MissingExtraError: torch is not installed.
    """
    options = options or ImportOptions()
    source, destination = Path(source), Path(destination)
    workers = num_workers(workers)
    _need_torch()
    names = _list_files(source)
    destination.mkdir(parents=True, exist_ok=True)
    with hold_folder(destination):
        shape = _settle(source, destination, names, options)
        task = _Task(source, destination, options, shape)
        limit = bad_limit(options.max_bad, len(names))
        target = LocalDestination(destination)
        counts = _Counts()
        with progress_bar(len(names), "import", "map") as bar:
            for num, done in _run(task, names, workers):
                counts.add(done)
                bar.update(num)
                _check_halves(source, counts)
                if len(counts.bad) > limit:
                    mend = "Mend or remove them and run again"
                    raise DataError(too_many(counts.bad, limit, target, "label map", mend))
        counts.bad.sort(key=lambda item: item.path)
        write_ledger(target, counts.bad)
        target.remove_leftovers()
    num_maps = counts.written + counts.kept
    if not num_maps:
        raise DataError(
            f"{source}: expected label maps, found none that could be read: {counts.bad[0].reason}"
        )
    return ImportSummary(
        len(names), counts.written, counts.kept, len(counts.bad), shape, counts.map_bytes / num_maps
    )


@dataclass(frozen=True)
class _Task:
    """What the chunks of a run have in common."""

    source: Path
    destination: Path
    options: ImportOptions
    shape: Shape

    def convert(self, names: Sequence[str]) -> _Counts:
        counts = _Counts()
        for name in names:
            try:
                self._convert(name, counts)
            except ImageError as error:
                counts.bad.append(BadInput(name, error.kind, str(error)))
            except DataError as error:  # of the codec
                counts.bad.append(BadInput(name, "not-a-label-map", f"{self.source / name}: {error}"))
        return counts

    def _convert(self, name: str, counts: _Counts) -> None:
        file = map_path(self.destination, name)
        if (found := self._kept(file)) is not None:
            counts.kept += 1
            counts.map_bytes += len(found)
            if self.options.num_classes > HALF_EXACT + 1:
                _count_ids(decode_label_map(found, str(file))[1], counts)
            return
        scores, ids = read_published_map(self.source / name, self.options.num_classes)
        if self.options.transpose:
            scores, ids = scores.swapaxes(1, 2), ids.swapaxes(1, 2)
        if scores.shape != self.shape:
            raise ImageError(
                f"{self.source / name}: expected [K, P, Q] {list(self.shape)} as the others, found {list(scores.shape)}",
                kind="other-shape",
            )
        data = encode_label_map(
            scores, ids, num_classes=self.options.num_classes, score_encoding=self.options.scores
        )
        # Not flushed: that takes longer than all the rest. A map that a power cut has emptied fails its
        # checksum in the next run, and is written again.
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(file)
        try:
            with naming(file, temporary):
                temporary.write_bytes(data)
                os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        counts.written += 1
        counts.map_bytes += len(data)
        _count_ids(ids, counts)

    def _kept(self, file: Path) -> bytes | None:
        """The map of an earlier run, where it is whole."""
        try:
            data = read_map_file(file)
            return data if read_map_header(data).shape == self.shape else None
        except (OSError, DataError):
            return None


def _count_ids(ids: np.ndarray, counts: _Counts) -> None:
    high = ids[ids > HALF_EXACT]
    counts.high_ids += high.size
    with np.errstate(over="ignore"):
        counts.inexact_ids += int((high.astype(np.float16).astype(np.float64) != high).sum())


def _check_halves(source: Path, counts: _Counts) -> None:
    """Refuse ids that are in float32 now and were in half precision before: no odd one above 2048 is left."""
    if counts.high_ids >= _SUSPECT_IDS and not counts.inexact_ids:
        raise DataError(
            f"{source}: expected class ids in float32, found that all of {counts.high_ids} ids above {HALF_EXACT} are "
            "numbers that half precision has: the maps have been in half precision, which corrupts ids. Take maps that "
            "were saved in float32, or make them again: softshard maps make"
        )


def _list_files(source: Path) -> list[str]:
    """Paths of the `.pt` files below a folder, in lexical order of folders and names."""
    if not source.is_dir():
        raise UsageError(
            f"{source}: expected a folder of .pt files, found {'a file' if source.exists() else 'nothing'}"
        )
    names: list[str] = []
    for folder, folders, files in os.walk(source):
        folders.sort()
        below = os.path.relpath(folder, source)
        prefix = "" if below == "." else f"{below}/"
        names += [prefix + name for name in sorted(files) if name.endswith(".pt")]
    if not names:
        raise DataError(f"{source}: expected .pt files (CLASS/STEM.pt), found none")
    return names


def _settle(source: Path, destination: Path, names: Sequence[str], options: ImportOptions) -> Shape:
    """Write `import.json`, or compare it with that of an earlier run; returns the shape of the maps."""
    wanted = {"num_classes": options.num_classes, "transpose": options.transpose, "scores": options.scores}
    path = destination / IMPORT_NAME
    if path.is_file():
        try:
            found = json.loads(path.read_bytes()[:MAX_PLAN_BYTES])
            top, rows, columns = map(operator.index, found["shape"])
            earlier = {key: found[key] for key in wanted}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: expected the options of an earlier run, found: {error!r}. Import into a new folder"
            ) from error
        if earlier != wanted:
            raise UsageError(
                f"{destination}: expected maps made with {wanted}, found those of a run with {earlier}. Import into a new "
                "folder"
            )
        return top, rows, columns
    others = sorted(name for name in os.listdir(destination) if name != LOCK_NAME)
    if others:
        raise UsageError(f"{destination}: expected an empty or new folder, found {some(others)}")
    shape = _first_shape(source, names, options)
    write_atomically(path, json.dumps({**wanted, "shape": list(shape)}, indent=1).encode("ascii"))
    return shape


def _first_shape(source: Path, names: Sequence[str], options: ImportOptions) -> Shape:
    reasons = []
    for name in names[:_PROBED]:
        try:
            scores, _ = read_published_map(source / name, options.num_classes)
        except ImageError as error:
            reasons.append(str(error))
            continue
        top, rows, columns = scores.shape
        return (top, columns, rows) if options.transpose else (top, rows, columns)
    raise DataError(
        f"{source}: expected label maps, found none that can be read among the first {len(reasons)} files: {reasons[0]}"
    )


def _run(task: _Task, names: Sequence[str], workers: int) -> Iterator[tuple[int, _Counts]]:
    """Convert files in processes; yields how many were looked at, and what became of them."""
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    workers = min(workers, len(chunks))
    yield from in_processes(_convert, task, chunks, workers, in_order=False, prepare=_one_thread)


def _convert(task: _Task, names: Sequence[str]) -> tuple[int, _Counts]:
    return len(names), task.convert(names)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # one process a core


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("softshard maps import", "loaders", error) from error
