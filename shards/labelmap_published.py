"""One published label map, as ReLabel and TokenLabeling give them: a file of torch.save's.

It holds one tensor [2, K, P, Q]: plane 0 the scores (logits), plane 1 the class ids, both as floats. It is loaded
without running pickled code, and refused before anything is allocated for sizes that it only claims. TokenLabeling
keeps both planes in half precision, which has no odd numbers above 2048: such ids are corrupt, and are refused.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np

from .errors import ImageError, first_line
from .schema import MAX_MAP_ELEMENTS

if TYPE_CHECKING:
    from torch import Tensor

HALF_EXACT = 2048  # half precision has every whole number up to it

_MAX_BYTES = 16 * MAX_MAP_ELEMENTS  # of a file, and of what it expands to: two float64 planes
_ZIP_MAGIC = b"PK\x03\x04"


def read_published_map(file: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of ReLabel's or TokenLabeling's.

    Args:
        file: what torch.save wrote: a float tensor [2, K, P, Q].
        num_classes: C; ids are below it.

    Returns:
        (scores, ids): float32 and int64, [K, P, Q].

    Raises:
        ImageError: anything else; its `kind` is for the ledger.
    """
    tensor, precision = _load_tensor(file)
    if tensor.ndim != 4 or tensor.shape[0] != 2 or not tensor.is_floating_point() or not tensor.numel():
        raise ImageError(
            f"{file}: expected a float tensor [2, K, P, Q], found {precision} {list(tensor.shape)}",
            kind="not-a-label-map",
        )
    if precision == "float16" and num_classes > HALF_EXACT + 1:
        raise ImageError(
            f"{file}: expected class ids in float32 for {num_classes} classes, found float16, which has no odd numbers "
            f"above {HALF_EXACT}: the ids are corrupt. Take maps that were saved in float32, or make them again: "
            "softshard maps make",
            kind="rounded-ids",
        )
    planes = tensor.detach().float().numpy()
    ids = planes[1]
    whole = np.isfinite(ids) & (ids == np.rint(ids))
    if not whole.all():
        raise ImageError(
            f"{file}: expected whole numbers as class ids in plane 1, found {float(ids[~whole][0])}",
            kind="bad-ids",
        )
    if ids.min() < 0 or ids.max() >= num_classes:
        raise ImageError(
            f"{file}: expected class ids from 0 to {num_classes - 1}, found {ids.min():g} to {ids.max():g}; the planes are "
            "in another order, or the teacher has more classes (--num-classes)",
            kind="bad-ids",
        )
    return planes[0], ids.astype(np.int64)


def _load_tensor(file: Path) -> tuple[Tensor, str]:
    """The tensor in a file, and its precision; nothing but tensors is unpickled.

    Raises:
        ImageError: the file is too large, damaged, or holds something else.
    """
    import torch

    try:
        with open(file, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(
            f"{file}: expected a label map, found: {error.strerror or error}", kind="unreadable"
        ) from error
    held = _expanded_bytes(file, data)
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # what torch says of it goes on to advise loading it all the same
        raise ImageError(
            f"{file}: expected a tensor that torch.save wrote, found a file that cannot be read as one (it is damaged, or "
            "holds more than tensors, which is never unpickled: it could run code)",
            kind="unreadable",
        ) from error
    except Exception as error:  # a damaged pickle fails in any way: IndexError, struct.error, ...
        reason = first_line(error)
        raise ImageError(
            f"{file}: expected a tensor that torch.save wrote, found a file that cannot be read as one ({reason[:200]})",
            kind="unreadable",
        ) from error
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        raise ImageError(
            f"{file}: expected one dense tensor, found {type(value).__name__}", kind="not-a-label-map"
        )
    # A header may claim a storage that the file does not hold, or one value as many.
    if value.untyped_storage().nbytes() > held or value.numel() * value.element_size() > held:
        raise ImageError(
            f"{file}: expected the values of a tensor {list(value.shape)}, found {held} bytes; it is damaged",
            kind="unreadable",
        )
    return value, str(value.dtype).removeprefix("torch.")


def _expanded_bytes(file: Path, data: bytes) -> int:
    """How many bytes of tensors a file can hold, known without expanding it.

    Raises:
        ImageError: more than a label map may have, or neither of torch.save's two formats.
    """
    largest = len(data)
    try:
        if data.startswith(_ZIP_MAGIC):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                largest = max(largest, sum(entry.file_size for entry in archive.infolist()))
        else:
            # Before torch 1.6: four pickles (a magic number, a version, a system, the object), then raw values, for
            # which memory is allocated as the object claims.
            stream = io.BytesIO(data)
            for number in range(4):
                for _, argument, _ in pickletools.genops(stream):
                    if number == 3 and isinstance(argument, int):
                        largest = max(largest, argument)
    except (zipfile.BadZipFile, ValueError, IndexError, KeyError, EOFError, NotImplementedError) as error:
        raise ImageError(
            f"{file}: expected a file that torch.save wrote, found: {error}", kind="unreadable"
        ) from error
    if largest > _MAX_BYTES:
        raise ImageError(
            f"{file}: expected at most {_MAX_BYTES} bytes of a label map, found a claim of {largest}",
            kind="too-large",
        )
    return largest
