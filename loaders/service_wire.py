"""A batch as Arrow rows, and back without a copy: the form that it has on the wire and in shared memory.

One record batch of N rows. `keys` is a column of text; every tensor is a column of fixed-size bytes, whose field says
the dtype and shape of a row, so that any Arrow reader can make an array of it. The schema's metadata holds the samples
of this batch that could not be read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..shards.errors import DataError
from .batch import Batch, Mix, TeacherLevels
from .faults import BadSample
from .pooling import SparseTargets

_META = b"softshard"
_ROW = b"row"
_MORE = "more_targets."
_SAME_VERSION = "Install the same softshard on servers and trainers"
_DTYPES = ("uint8", "bool", "int64", "float16", "float32")


def encode_batch(batch: Batch, bad: list[BadSample]) -> pa.RecordBatch:
    """Rows of a batch on the host; large tensors are not copied.

    Args:
        batch: images [N, 3, S, S], channels-last.
        bad: the batch's own samples that could not be read.
    """
    arrays, parts = [pa.array(batch.keys, pa.string())], [pa.field("keys", pa.string())]
    for name, tensor in _tensors(batch).items():
        values = np.ascontiguousarray(tensor.numpy())
        row_bytes = values.nbytes // max(1, len(values))
        kind = pa.binary(row_bytes)
        row = json.dumps([values.dtype.name, values.shape[1:]]).encode()
        arrays.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values)]))
        parts.append(pa.field(name, kind, metadata={_ROW: row}))
    meta = {_META: json.dumps({"bad": [asdict(sample) for sample in bad]})}
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(parts, metadata=meta))


def decode_batch(rows: pa.RecordBatch) -> tuple[Batch, list[BadSample]]:
    """What `encode_batch` was given; tensors see the rows' memory, which lives as long as they do.

    Raises:
        DataError: rows of something else.
    """
    try:
        bad = [BadSample(**sample) for sample in read_meta(rows.schema)["bad"]]
        found = {
            field.name: _tensor(rows.column(i), *_row(field.metadata[_ROW]))
            for i, field in enumerate(rows.schema)
            if field.name != "keys"
        }
        place = rows.schema.get_field_index("keys")  # below 0 for none, and for several
        if place < 0 or rows.schema.field(place).type != pa.string():
            raise ValueError("expected one column of keys as text")
        keys = rows.column(place).to_pylist()
        teacher = [found.pop(f"teacher.{name}", None) for name in TeacherLevels._fields]
        mix = [found.pop(f"mix.{name}", None) for name in Mix._fields]
        batch = Batch(
            images=found["images"].permute(0, 3, 1, 2),
            classes=found["classes"],
            levels=found.get("levels"),
            targets=_targets(found, "targets"),
            crops=found["crops"],
            flips=found["flips"],
            keys=keys,
            valid=found["valid"],
            more_targets=_more_targets(found),
        )
    except DataError:
        raise
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RuntimeError,  # torch's, of dimensions; and JSON that nests too deep
        pa.ArrowException,
    ) as error:
        raise DataError(
            f"data service: expected the rows of a batch, found others: {error!r:.200}. {_SAME_VERSION}"
        ) from error
    if None not in teacher:
        batch.teacher = TeacherLevels(*teacher)  # pyright: ignore[reportArgumentType]
    if None not in mix:
        batch.mix = Mix(*mix)  # pyright: ignore[reportArgumentType]
    return batch, bad


def read_meta(schema: pa.Schema) -> dict[str, Any]:
    """What a schema says for softshard: of a batch `bad`, of a handle `segment`.

    Raises:
        DataError: nothing of the kind.
    """
    try:
        found = json.loads((schema.metadata or {})[_META])
    except (KeyError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"data service: expected rows that softshard sent, found others. {_SAME_VERSION}")
    return found


def meta_schema(content: Mapping[str, Any]) -> pa.Schema:
    """A schema without columns that says something."""
    return pa.schema([], metadata={_META: json.dumps(content)})


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch's tensors by the names of their columns; images as [N, S, S, 3]."""
    found: dict[str, torch.Tensor | None] = {
        "images": batch.images.permute(0, 2, 3, 1),
        "classes": batch.classes,
        "levels": batch.levels,
        "crops": batch.crops,
        "flips": batch.flips,
        "valid": batch.valid,
    }
    more = {f"{_MORE}{name}": targets for name, targets in (batch.more_targets or {}).items()}
    for prefix, group in {
        "targets": batch.targets,
        "teacher": batch.teacher,
        "mix": batch.mix,
        **more,
    }.items():
        if isinstance(group, SparseTargets | TeacherLevels | Mix):
            found |= {f"{prefix}.{name}": tensor for name, tensor in group._asdict().items()}
        else:
            found[prefix] = group
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _targets(found: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | SparseTargets | None:
    """Dense or sparse targets, or none, of the columns that `_tensors` named."""
    if f"{name}.values" in found:
        return SparseTargets(found[f"{name}.values"], found[f"{name}.ids"])
    return found.get(name)


def _more_targets(found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | SparseTargets] | None:
    """The targets beside the first, by name, in their order."""
    more = {}
    for column in found:
        if column.startswith(_MORE):
            name = column.removeprefix(_MORE).partition(".")[0]
            more[name] = _targets(found, f"{_MORE}{name}")
    return more or None


class _Lent:
    """Arrow's memory for numpy: the array holds this, and this holds the buffer."""

    def __init__(self, buffer: pa.Buffer, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self._buffer = buffer
        # Called writable: a received batch is nobody else's, and shared memory is mapped copy-on-write.
        self.__array_interface__ = {
            "data": (buffer.address + offset, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


@lru_cache(maxsize=64)
def _row(said: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of a row, as its field says them; the same in every batch of a loader."""
    name, shape = json.loads(said)
    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r:.80}")
    return np.dtype(name), tuple(map(int, shape))


def _tensor(column: pa.Array, dtype: np.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """[N, ...] over the memory of a column."""
    full, row_bytes = (len(column), *shape), column.type.byte_width
    # Python's product: NumPy's would come round to the right number for shapes beyond all memory.
    if min(full) < 0 or math.prod(shape) * dtype.itemsize != row_bytes:
        raise ValueError(f"{row_bytes} bytes for {dtype} {shape!r:.80}")
    buffer = column.buffers()[1]
    if buffer is None or not len(column) or not row_bytes:
        return torch.from_numpy(np.zeros(full, dtype))
    start = column.offset * row_bytes
    if buffer.size < start + len(column) * row_bytes:
        raise ValueError(f"a buffer of {buffer.size} bytes")
    values = np.asarray(_Lent(buffer, start, dtype, full))
    if dtype == np.bool_ and values.view(np.uint8).max() > 1:
        raise ValueError("a bool that is neither 0 nor 1")
    aligned = not (buffer.address + start) % dtype.itemsize
    return torch.from_numpy(values if aligned else values.copy())  # gRPC's memory begins anywhere
