"""Finds JPEGs that are damaged inside, which decoders show as grey or wrong colours and only warn of.

Every image is decoded in full, at an eighth of its size, the first time that a loader comes by it, before anything of it is
served: so a batch does not depend on what was looked at before, and later epochs cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg

from ..shards.errors import DataError
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
        """
        for i in np.flatnonzero(~self._is_whole[samples]).tolist():
            try:
                # Damage shows in the entropy-coded data, which every scale reads whole; least is left to do at an eighth.
                simplejpeg.decode_jpeg(
                    members[i], "GRAY", min_height=1, min_width=1, min_factor=8, strict=True
                )
            except ValueError as error:
                shard, place = places[i]
                raise DataError(
                    f"{shard.where(place, JPG.suffix)}: expected a whole JPEG, found: {error}; it is damaged. Run: "
                    f"softshard verify --decode {shard.path}"
                ) from error
            self._is_whole[samples[i]] = True
