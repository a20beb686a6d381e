"""Finds JPEGs that are damaged inside, which decoders show as grey or wrong colours and only warn of.

Every image is decoded in full, at an eighth of its size, the first time that a loader comes by it, before anything of it is
served: so a batch does not depend on what was looked at before, and later epochs cost nothing.

What libjpeg-turbo would warn of is damage, as `softshard verify --decode` has it: stray bytes before a marker, too, which
cameras leave in some photographs. A scan that is damaged and one with such bytes behind it give the same warning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg

from ..shards.errors import DataError
from ..shards.jpeg import raise_if_memory_ran_out
from ..shards.schema import JPG
from .samples import Place


class FirstLook:
    """Remembers which samples were looked at, and are whole.

    Args:
        num_samples: of all data sets; a byte of memory each.
    """

    def __init__(self, num_samples: int) -> None:
        self._is_whole = np.zeros(num_samples, bool)

    def check(self, samples: np.ndarray, places: Sequence[Place], members: Sequence[memoryview]) -> None:
        """Look at those of M samples that were not looked at before.

        Args:
            samples: int64 [M], their indices.
            places: where they lie, for messages.
            members: their JPEGs, whose headers were read.

        Raises:
            DataError: one is damaged.
            MemoryError: there is none left to decode one.
        """
        for i in np.flatnonzero(~self._is_whole[samples]).tolist():
            try:
                _decode(members[i])
            except ValueError as error:
                shard, place = places[i]
                where = shard.where(place, JPG.suffix)
                raise_if_memory_ran_out(error, where)
                raise DataError(
                    f"{where}: expected a whole JPEG, found: {error}; it is damaged. Run: "
                    f"softshard verify --decode {shard.path}"
                ) from error
            self._is_whole[samples[i]] = True


def _decode(jpeg: memoryview) -> None:
    """Decode a JPEG that is whole as far as `read_size` sees, which forgives a missing end marker.

    Raises:
        ValueError: it is damaged, or memory ran out.
    """

    def decode(data: bytes | memoryview) -> None:
        # Damage shows in the entropy-coded data, which every scale reads whole; least is left to do at an eighth.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)

    try:
        decode(jpeg)
    except ValueError as error:
        if "Premature end" not in str(error):
            raise
        decode(bytes(jpeg) + b"\xff\xd9")
