"""Class-balanced sampling: how often each sample is drawn in an epoch. Pure; no torch in here.

With exponent a class c, which has n_c of N samples, gets the share n_c^(1-a) / sum_j n_j^(1-a) of the N draws of an
epoch: a = 0 leaves everything as it is, a = 1 draws every class equally often, 0.5 by the square root of its size.
A class's draws are spread over its samples so that their counts differ by at most one.
"""

from __future__ import annotations

import numpy as np

from ..shards.errors import UsageError
from ..shards.philox import PURPOSE_BALANCE, index_bits, random_keys

MAX_DRAWS = 2**16  # of one sample in an epoch: the generator's counters hold no more
_WEIGHT_STEP = 2**-20


def class_draws(class_counts: np.ndarray, exponent: float) -> np.ndarray:
    """The draws of each class, by largest remainder (Hamilton's method; ties to the lower class).

    A power may differ in its last bit from one processor to another, and with it the draws; so powers are rounded to
    multiples of 2^-20 first, and everything after is exact.

    Args:
        class_counts: int64 [C], n_c.
        exponent: a, from 0 to 1.

    Returns:
        int64 [C], with the sum N, each within one of its exact share; 0 for classes without samples.

    Raises:
        UsageError: an exponent outside 0 to 1.
    """
    if not 0 <= exponent <= 1:
        raise UsageError(
            f"loader: expected balance from 0 (as stored) to 1 (every class alike), found {exponent}"
        )
    counts = [int(count) for count in class_counts]
    weights = [round(count ** (1 - exponent) / _WEIGHT_STEP) if count else 0 for count in counts]
    num, total = sum(counts), sum(weights)
    shares = [divmod(num * weight, total) for weight in weights]
    draws = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(shares)), key=lambda c: -shares[c][1])
    for c in by_remainder[: num - sum(draws)]:
        draws[c] += 1
    return np.array(draws, np.int64)


class Balance:
    """How often the samples of a data set are drawn, epoch by epoch.

    Args:
        classes: integer [N], the class of each sample that is served, in the manifest's order.
        num_classes: C.
        exponent: a.

    Raises:
        UsageError: an exponent outside 0 to 1, or one that draws a sample more than 65,536 times.
    """

    def __init__(self, classes: np.ndarray, num_classes: int, exponent: float) -> None:
        self._classes = classes
        self._counts = np.bincount(classes, minlength=num_classes)
        self.class_draws = class_draws(self._counts, exponent)
        each, self._extra = np.divmod(self.class_draws, np.maximum(self._counts, 1))
        self._each = each.astype(np.int32)
        self.most_draws = int((each + (self._extra > 0)).max())
        if self.most_draws > MAX_DRAWS:
            c = int(each.argmax())
            raise UsageError(
                f"loader: expected a balance that draws each sample at most {MAX_DRAWS:,} times an epoch, found "
                f"{exponent}, with which class {c}, which has {self._counts[c]:,} samples, gets {self.class_draws[c]:,} "
                "draws. Give a smaller one, or leave the class out"
            )

    def count_draws(self, seed: int, epoch: int, turn: int = 0) -> np.ndarray:
        """How often each sample is drawn.

        Seed, epoch and turn choose which samples of a class get one draw more than its others.

        Returns:
            int32 [N].
        """
        num = len(self._classes)
        draws = self._each[self._classes]
        # Sorted by class, then at random: the first few of each class get one more. A key holds its class above
        # and its sample below the random bits, so that the keys themselves are sorted and none are alike.
        sample_mask = np.uint64((1 << index_bits(num)) - 1)
        class_bits = index_bits(len(self._counts))
        keys = random_keys(seed, PURPOSE_BALANCE, epoch, 0, num, turn)
        samples = keys & sample_mask
        keys >>= np.uint64(class_bits)
        keys &= ~sample_mask
        keys |= samples
        del samples
        if class_bits:
            keys |= self._classes.astype(np.uint64) << np.uint64(64 - class_bits)
        keys.sort()
        starts = np.cumsum(self._counts) - self._counts
        before = np.cumsum(self._extra) - self._extra
        places = np.arange(self._extra.sum()) + np.repeat(starts - before, self._extra)
        draws[(keys[places] & sample_mask).view(np.int64)] += 1
        return draws
