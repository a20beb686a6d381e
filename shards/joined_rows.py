"""Tags or class weights of a list for the samples of finished data sets: `reshard --tags`, `reshard --weights`.

    {"path": "n01440764/a.jpg", "tags": ["tench", "fish"]}      joined by the image's original path
    {"key": "n01440764_a", "weights": {"n01440764": 1.0}}       or by the sample's key

Every row is read and checked before anything is written; 30 bytes a sample stay in memory, and a row is read again when
its shard is made. Its hash makes sure that it is the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from .components import decode_meta
from .errors import DataError, UsageError
from .gather import SampleTable, key_hashes
from .json_lines import JsonLine, read_json_lines
from .pack_soft import WITHOUT_TAGS, SoftColumns
from .schema import META, MIB
from .soft_labels import SoftLabelInfo, encode_meta

_MAX_LINE_BYTES = MIB
_MAX_PROBLEMS = 100
_MISSING = -1


@dataclass(frozen=True)
class JoinedRows:
    """A list whose rows have been checked; N samples of the sources.

    Attributes:
        file: the list.
        columns: what is taken from it.
        info: what the manifest says of it.
        offsets: int64 [N], first byte of each sample's row; -1 where it has none.
        lengths: int32 [N], bytes of the row.
        hashes: uint64 [N], of what the row becomes.
        sizes: int32 [N], bytes that it takes in `msgpack`.
        sha256: of all of them, with the keys of their samples.
        counts: what is missing: `unknown_tags`, `without_tags` or `without_weights`, `rows_of_no_sample`.
    """

    file: Path
    columns: SoftColumns
    info: SoftLabelInfo
    offsets: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    sizes: np.ndarray
    sha256: str
    counts: Counter[str]

    @property
    def kind(self) -> str:
        """`tags` or `weights`."""
        return self.columns.names[0]

    def has(self, numbers: np.ndarray) -> np.ndarray:
        """bool [n], which of the samples have a row."""
        return self.offsets[numbers] != _MISSING

    def add(self, data: bytes, number: int, where: str) -> bytes:
        """A sample's `msgpack` with what its row says.

        Raises:
            DataError: the `msgpack` is none, or the row is not the one that was checked.
        """
        fields = self._fields(number)
        try:
            added = encode_meta({**decode_meta(data, where), **fields})
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{where}, component {META.suffix!r}: expected MessagePack, found: {error}"
            ) from error
        if len(added) > META.max_bytes:
            raise DataError(
                f"{where}, component {META.suffix!r}: expected at most {META.max_bytes:,} bytes with the {self.kind} of "
                f"{self.file}, found {len(added):,}"
            )
        return added

    def _fields(self, number: int) -> dict[str, Any]:
        if self.offsets[number] == _MISSING:
            return self.columns.take({}, "", Counter())
        with open(self.file, "rb") as file:
            file.seek(int(self.offsets[number]))
            line = file.read(int(self.lengths[number]))
        try:
            fields = self.columns.take(json.loads(line), "", Counter())
            same = _hash64(fields) == self.hashes[number]
        except (ValueError, RecursionError, DataError, AttributeError):
            same, fields = False, {}
        if not same:
            raise DataError(
                f"{self.file}: expected the row that was checked at byte {self.offsets[number]}, found another; the list "
                "has changed meanwhile. Run it again, into a new folder"
            )
        return fields


def join_rows(
    file: Path,
    columns: SoftColumns,
    info: SoftLabelInfo,
    table: SampleTable,
    numbers: np.ndarray,
    progress: Callable[[int], object],
) -> JoinedRows:
    """Read and check the rows of a list, and find each one's sample.

    Args:
        file: the list, `.jsonl`.
        columns: what to take, tags or weights.
        info: what the manifest says of it.
        table: the samples, with their original paths.
        numbers: int64 [n], which samples are kept.
        progress: told of the bytes read.

    Raises:
        UsageError: it is no local list.
        DataError: rows that say nonsense, two for one sample, a path that several samples share, or no row of any sample.
    """
    if not file.is_file() or file.suffix not in (".jsonl", ".ndjson"):
        raise UsageError(
            f"{file}: expected a local list of JSON lines (.jsonl) with {columns.names[0]}, found none"
        )
    offsets = np.full(len(table.offsets), _MISSING, np.int64)
    lengths, sizes = np.zeros(len(offsets), np.int32), np.zeros(len(offsets), np.int32)
    hashes = np.zeros(len(offsets), np.uint64)
    samples, problems = _Samples(table), list[str]()
    counts: Counter[str] = Counter()
    kept = np.zeros(len(offsets), bool)
    kept[numbers] = True
    for line in _lines(file, progress):
        where, row = f"{file}: line {line.number}", line.row
        try:
            if row is None:
                raise DataError(f"{where}: {line.problem}")
            number = samples.find(row, where)
            if number is None or not kept[number]:
                counts["rows_of_no_sample"] += 1
                continue
            if offsets[number] != _MISSING:
                raise DataError(
                    f"{where}: expected one row a sample, found another at byte {offsets[number]}"
                )
            fields = columns.take(row, where, counts)
        except DataError as error:
            problems.append(str(error))
        else:
            offsets[number], lengths[number] = line.offset, line.length
            hashes[number] = _hash64(fields)
            sizes[number] = len(encode_meta(fields))
        if len(problems) >= _MAX_PROBLEMS:
            break
    if problems:
        raise DataError("\n".join([*problems, f"{file}: nothing has been written. Mend these rows"]))
    num_without = int((offsets[numbers] == _MISSING).sum())
    if num_without == len(numbers):
        raise DataError(
            f"{file}: expected rows whose path or key is that of a sample, such as {table.path(int(numbers[0]))!r}, found "
            f"none among {counts['rows_of_no_sample']:,}"
        )
    counts[WITHOUT_TAGS.replace("tags", columns.names[0])] += num_without
    ordered = np.stack([table.key_hashes[numbers], hashes[numbers]], axis=1).astype(">u8")
    sha256 = hashlib.sha256(ordered.tobytes()).hexdigest()
    return JoinedRows(file, columns, info, offsets, lengths, hashes, sizes, sha256, counts)


class _Samples:
    """Finds samples by key or original path, by 64 bits of their hashes."""

    def __init__(self, table: SampleTable) -> None:
        self._keys = _sorted(table.key_hashes)
        paths = [key_hashes(list(names)) for names in table.paths]
        self._paths = _sorted(np.concatenate(paths))

    def find(self, row: dict[str, Any], where: str) -> int | None:
        """A row's sample, or None.

        Raises:
            DataError: it has neither a key nor a path, or one that several samples share.
        """
        by = "key" if "key" in row else "path"
        name = row.get(by)
        if not isinstance(name, str):
            raise DataError(f"{where}: expected a path or a key, found {name!r:.60}")
        hashes, numbers = self._keys if by == "key" else self._paths
        (wanted,) = key_hashes([name.encode("utf-8", "backslashreplace").decode()])
        first, last = (int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right"))
        if last - first > 1:
            raise DataError(
                f"{where}: expected a {by} of one sample, found {name!r:.60} of {last - first}; give keys"
            )
        return int(numbers[first]) if last > first else None


def _sorted(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order


def _lines(file: Path, progress: Callable[[int], object]) -> Iterator[JsonLine]:
    with open(file, "rb") as stream:
        for line in read_json_lines(stream, _MAX_LINE_BYTES):
            yield line
            progress(line.length)


def _hash64(fields: dict[str, Any]) -> np.uint64:
    packed: bytes = msgpack.packb(fields)  # type: ignore[assignment]
    return np.uint64(int.from_bytes(hashlib.sha256(packed).digest()[:8], "big"))
