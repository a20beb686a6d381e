"""Where the members of a shard lie: scanned from the tar, or read from DALI's `.idx`.

The `.idx` text is what DALI's `wds2idx` writes: `v1.2 <samples>`, then a line a sample with
`<suffix> <offset> <bytes> <member name>` for each component; offsets point at the data, not at the header.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np

from .errors import DataError
from .schema import COMPONENT_BY_SUFFIX, MAX_TAR_MEMBERS, TAR_BLOCK_BYTES, split_member_name
from .text_limits import counted

Size = TypeVar("Size", int, np.ndarray)


class Member(NamedTuple):
    """One component of one sample, within its tar."""

    key: str
    suffix: str
    offset: int  # of the data, in bytes
    size: int  # bytes


@dataclass(frozen=True)
class ShardIndex:
    """Random access into one shard whose samples all have the same components.

    Attributes:
        suffixes: component suffixes, in the order of the tar (M of them).
        keys: the samples' keys, in the order of the tar (N of them).
        offsets: int64 [N, M], byte offset of each member's data.
        sizes: int64 [N, M], bytes of each member.
    """

    suffixes: tuple[str, ...]
    keys: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray

    def column(self, suffix: str) -> int:
        """The column of a component in `offsets` and `sizes`."""
        return self.suffixes.index(suffix)


def tar_headers(file: BinaryIO, where: str) -> Iterator[tarfile.TarInfo]:
    """The headers of an open tar, one at a time; the file may be read and moved in between.

    Raises:
        DataError: too many members.
        tarfile.TarError, ValueError, OverflowError, EOFError: not a tar, or damaged.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        num_members = 0
        while (header := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            num_members += 1
            if num_members > MAX_TAR_MEMBERS:
                raise DataError(f"{where}: expected at most {MAX_TAR_MEMBERS} members, found more")
            yield header


def tar_members(file: BinaryIO, where: str) -> Iterator[Member]:
    """The members of an open tar, one at a time; the file may be read and moved in between.

    Raises:
        DataError: not a tar, cut short, too many members, something else than plain files in it (links,
            devices, sparse files), or a member that is longer than the file or than its component may be.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    last: Member | None = None
    try:
        for header in tar_headers(file, where):
            # A sparse file's size is not what it takes in the tar.
            if not header.isfile() or header.issparse():
                raise DataError(f"{where}: expected plain files only, found {header.name!r} of another type")
            last = Member(*split_member_name(header.name), header.offset_data, header.size)
            known = COMPONENT_BY_SUFFIX.get(last.suffix)
            if known and last.size > known.max_bytes:
                raise DataError(
                    f"{where}: sample {last.key!r}, component {last.suffix!r}: expected at most "
                    f"{known.max_bytes} bytes, found {last.size}"
                )
            if last.offset + last.size > file_bytes:
                break  # said below
            yield last
    except DataError:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        check_tar_end(file, last, where)
        raise DataError(f"{where}: expected a tar, found: {error}; the shard is damaged") from error
    check_tar_end(file, last, where)


def check_tar_end(file: BinaryIO, last: Member | None, where: str) -> None:
    """Make sure that a tar is whole up to its end-of-archive blocks.

    tarfile takes a file that was cut at a member boundary, or inside the last member, for a whole one, and a
    damaged header for the end.

    Raises:
        DataError: the last member is cut short, or two blocks of zeros do not follow it.
    """
    size = file.seek(0, os.SEEK_END)
    hint = f"Copy it again, then run: softshard verify {where}"
    if last is not None and size < last.offset + last.size:
        raise DataError(
            f"{where}: sample {last.key!r}, component {last.suffix!r}: expected {last.size} bytes, "
            f"found {max(0, size - last.offset)}; the shard is cut short. {hint}"
        )
    end = last.offset + padded(last.size) if last else 0
    if size < end + 2 * TAR_BLOCK_BYTES:
        raise DataError(
            f"{where}: expected at least {end + 2 * TAR_BLOCK_BYTES} bytes with the end-of-archive blocks, "
            f"found {size}; the shard is cut short. {hint}"
        )
    file.seek(end)
    if any(file.read(2 * TAR_BLOCK_BYTES)):
        raise DataError(
            f"{where}: expected a member or the end-of-archive blocks at byte {end}, found neither; "
            f"the shard is damaged. {hint}"
        )


def padded(size: Size) -> Size:
    """Bytes that the data of a member, or of each of several, take in a tar: multiples of 512."""
    return -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES


def build_index(members: list[Member], where: str) -> ShardIndex:
    """Group a tar's members into samples.

    Raises:
        DataError: no members, a sample with other components than the first one, or a key used twice.
    """
    samples: list[tuple[str, list[Member]]] = []
    for member in members:
        if not samples or samples[-1][0] != member.key:
            samples.append((member.key, []))
        samples[-1][1].append(member)
    if not samples:
        raise DataError(f"{where}: expected samples, found an empty tar")
    suffixes = tuple(member.suffix for member in samples[0][1])
    seen: set[str] = set()
    for key, parts in samples:
        found = tuple(member.suffix for member in parts)
        if found != suffixes:
            raise DataError(
                f"{where}: sample {key!r}: expected components {list(suffixes)} as in the first sample, "
                f"found {list(found)}"
            )
        if key in seen:
            raise DataError(f"{where}: sample {key!r}: expected each key once, found it again")
        seen.add(key)
    return ShardIndex(
        suffixes,
        tuple(key for key, _ in samples),
        np.array([[member.offset for member in parts] for _, parts in samples], np.int64),
        np.array([[member.size for member in parts] for _, parts in samples], np.int64),
    )


def index_name(shard_name: str) -> str:
    """The name of a shard's index: beside it, ending in `.idx`."""
    return shard_name.removesuffix(".tar") + ".idx"


def format_index(index: ShardIndex) -> str:
    """The text of a `.idx` file."""
    lines = [f"v1.2 {len(index.keys)}"]
    for key, offsets, sizes in zip(index.keys, index.offsets.tolist(), index.sizes.tolist(), strict=True):
        lines.append(
            " ".join(
                f"{suffix} {offset} {size} {key}.{suffix}"
                for suffix, offset, size in zip(index.suffixes, offsets, sizes, strict=True)
            )
        )
    return "\n".join(lines) + "\n"


def parse_index(text: str, where: str, tar_bytes: int) -> ShardIndex:
    """Read a `.idx` file (about 4 us a sample).

    Args:
        text: the file.
        where: its name, for messages.
        tar_bytes: size of the tar; an index that points outside is refused.

    Raises:
        DataError: the text is not such an index, or does not fit the tar.
    """
    hint = f"the index does not belong to this shard or is damaged. Run: softshard verify {where}"
    head, _, body = text.partition("\n")
    version, _, count = head.partition(" ")
    count = count.strip()
    if version != "v1.2" or not re.fullmatch("[0-9]{1,12}", count):
        raise DataError(f"{where}: expected a first line 'v1.2 <samples>', found {head[:40]!r}; {hint}")
    num = int(count)
    tokens = body.split()
    per_sample = len(body.partition("\n")[0].split())
    if num == 0 or per_sample == 0 or per_sample % 4 or len(tokens) != num * per_sample:
        raise DataError(
            f"{where}: expected {counted(num, 'sample')} of four fields a component, found "
            f"{counted(len(tokens), 'field')}; {hint}"
        )
    suffixes = tuple(tokens[0:per_sample:4])
    for i, suffix in enumerate(suffixes):
        if set(tokens[4 * i :: per_sample]) != {suffix}:
            raise DataError(f"{where}: expected component {suffix!r} in every sample, found another; {hint}")
    try:
        offsets = np.array(list(map(int, tokens[1::4])), np.int64).reshape(num, -1)
        sizes = np.array(list(map(int, tokens[2::4])), np.int64).reshape(num, -1)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: expected whole numbers, found: {error}; {hint}") from error
    # Not offset + size: that sum can overflow.
    if sizes.min() < 0 or offsets.min() < TAR_BLOCK_BYTES or (offsets > tar_bytes - sizes).any():
        raise DataError(
            f"{where}: expected members within the shard's {tar_bytes} bytes, found others; {hint}"
        )
    cut = len(suffixes[0]) + 1
    keys = tuple(name[:-cut] for name in tokens[3::per_sample])
    for i, suffix in enumerate(suffixes):
        for key, name in zip(keys, tokens[4 * i + 3 :: per_sample], strict=True):
            if name != f"{key}.{suffix}":
                raise DataError(f"{where}: expected member {key}.{suffix}, found {name!r}; {hint}")
    return ShardIndex(suffixes, keys, offsets, sizes)
