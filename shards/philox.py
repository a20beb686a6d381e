"""Philox4x32-10, vectorised: random numbers as a pure function of a key and a counter.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). NumPy's own Philox is a stream per
generator object, and its distributions may change between versions; here every sample draws from its own
counter, so that a shuffle or a crop is the same on every machine, worker count and NumPy version.
"""

from __future__ import annotations

import numpy as np

from .errors import UsageError

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_CHUNK = 1 << 18  # numbers drawn at a time

# What a draw is for: the same sample draws independent numbers for each purpose.
PURPOSE_PLAN = 1
PURPOSE_SHARD_ORDER = 2
PURPOSE_SHUFFLE = 3
PURPOSE_CROP = 4
PURPOSE_RESHARD = 5
PURPOSE_SUBSET = 6
PURPOSE_JITTER = 16
PURPOSE_LIGHTING = 17
PURPOSE_CUTOUT = 18
PURPOSE_RANDAUGMENT = 19
PURPOSE_ERASING = 20
PURPOSE_NOISE = 21
PURPOSE_MIX = 22


def check_seed(seed: int, epoch: int = 0) -> None:
    """Refuse numbers that the generator's counters cannot hold: they would give another number's order.

    Raises:
        UsageError: a seed outside 0 to 2**64 - 1, an epoch outside 0 to 2**32 - 1, or no whole numbers.
    """
    for name, value, bits in (("seed", seed, 64), ("epoch", epoch, 32)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**bits:
            raise UsageError(f"expected {name} as an int from 0 to 2**{bits} - 1, found {value!r}")


def philox4x32(counter: np.ndarray, key: int) -> np.ndarray:
    """Ten rounds of Philox4x32.

    Args:
        counter: integer [..., 4], each word taken modulo 2**32.
        key: 64-bit key; the low word is the first key word.

    Returns:
        uint32 [..., 4], uniform.
    """
    words = np.asarray(counter).astype(np.uint64) & _LOW
    c0, c1, c2, c3 = (words[..., i] for i in range(4))
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        product0, product1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _32) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def _counters(
    purpose: int, epoch: int, items: np.ndarray, occurrences: np.ndarray | int, blocks: int
) -> np.ndarray:
    """Counter words: item (low 32 bits), epoch, item (high 16) and occurrence, purpose and block."""
    items = np.asarray(items, dtype=np.uint64)
    counter = np.empty((*items.shape, blocks, 4), np.uint64)
    counter[..., 0] = (items & _LOW)[..., None]
    counter[..., 1] = epoch
    high = (items >> _32) | (np.asarray(occurrences, dtype=np.uint64) << np.uint64(16))
    counter[..., 2] = np.broadcast_to(high, items.shape)[..., None]
    counter[..., 3] = (purpose << 16) + np.arange(blocks, dtype=np.uint64)
    return counter


def uniforms(
    seed: int, purpose: int, epoch: int, items: np.ndarray, num: int, occurrences: np.ndarray | int = 0
) -> np.ndarray:
    """`num` numbers in [0, 1) for every item.

    Args:
        seed: 64-bit seed.
        purpose: one of the PURPOSE constants.
        epoch: 0 to 2**32 - 1.
        items: integer [N], each 0 to 2**48 - 1 (a sample's index in the manifest, say).
        num: numbers per item.
        occurrences: integer or integer [N], 0 to 65,535: which of a sample's draws in this epoch.

    Returns:
        float64 [N, num], multiples of 2**-32.
    """
    blocks = -(-num // 4)
    words = philox4x32(_counters(purpose, epoch, items, occurrences, blocks), seed)
    return words.reshape(*words.shape[:-2], blocks * 4)[..., :num] * 2.0**-32


def permutation(seed: int, purpose: int, epoch: int, first: int, num: int) -> np.ndarray:
    """A random order of `num` items whose counters start at `first`.

    Returns:
        int64 [num], a permutation of 0..num-1 (the order of 64-bit random keys, ties by index).
    """
    keys = np.empty(num, np.uint64)
    for start in range(0, num, _CHUNK):  # a counter takes 32 bytes, and ten rounds several copies
        items = np.arange(first + start, first + min(start + _CHUNK, num), dtype=np.uint64)
        words = philox4x32(_counters(purpose, epoch, items, 0, 1), seed)[:, 0, :2].astype(np.uint64)
        keys[start : start + len(items)] = (words[:, 0] << _32) | words[:, 1]
    return np.argsort(keys, kind="stable")
