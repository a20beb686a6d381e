"""Philox4x32-10, vectorised: random numbers as a pure function of a key and a counter.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). NumPy's own Philox is a stream per
generator object, and its distributions may change between versions; here every sample draws from its own
counter, so that a shuffle or a crop is the same on every machine, worker count and NumPy version.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

Words = NDArray[np.uint64]  # each below 2**32

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_CHUNK = 1 << 14  # keys drawn at a time: six arrays of them stay in a core's cache

# What a draw is for: the same sample draws independent numbers for each purpose.
PURPOSE_PLAN = 1
PURPOSE_SHARD_ORDER = 2
PURPOSE_SHUFFLE = 3
PURPOSE_CROP = 4
PURPOSE_RESHARD = 5
PURPOSE_SUBSET = 6
PURPOSE_CHOOSE_CLASSES = 7
PURPOSE_CHOOSE_IMAGES = 8
PURPOSE_BALANCE = 9
PURPOSE_SPREAD = 10
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
    c0, c1, c2, c3 = (words[..., i].copy() for i in range(4))
    return np.stack(_rounds(c0, c1, c2, c3, key), axis=-1).astype(np.uint32)


def _rounds(c0: Words, c1: Words, c2: Words, c3: Words, key: int) -> tuple[Words, Words, Words, Words]:
    """Ten rounds on the four counter words, in place: three times as fast as with a new array an operation."""
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    product0, product1 = np.empty_like(c0), np.empty_like(c2)
    for _ in range(10):
        np.multiply(c0, _M0, out=product0)
        np.multiply(c2, _M1, out=product1)
        np.right_shift(product1, _32, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(product0, _32, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(product1, _LOW, out=c1)
        np.bitwise_and(product0, _LOW, out=c3)
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


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


def permutation(seed: int, purpose: int, epoch: int, first: int, num: int, occurrence: int = 0) -> np.ndarray:
    """A random order of `num` items whose counters start at `first`.

    Returns:
        int64 [num], a permutation of 0..num-1: the order of `random_keys`.
    """
    keys = random_keys(seed, purpose, epoch, first, num, occurrence)
    keys.sort()
    keys &= np.uint64((1 << index_bits(num)) - 1)
    return keys.view(np.int64)


def index_bits(num: int) -> int:
    """Bits that hold 0..num-1."""
    return max(num - 1, 0).bit_length()


def random_keys(
    seed: int, purpose: int, epoch: int, first: int, num: int, occurrence: int = 0
) -> NDArray[np.uint64]:
    """Distinct random keys of `num` items whose counters start at `first`.

    The low `index_bits(num)` bits hold the item's index, the others are random: sorting the keys themselves gives
    the order that is otherwise an argsort of theirs, five times as fast. Ties of the random bits go by index.

    Args:
        seed: 64-bit seed.
        purpose: one of the PURPOSE constants.
        epoch: 0 to 2**32 - 1.
        first: counter of the first item.
        num: items, at most 2**48.
        occurrence: 0 to 65,535.

    Returns:
        uint64 [num].
    """
    keys = np.empty(num, np.uint64)
    random_bits = ~np.uint64((1 << index_bits(num)) - 1)
    for start in range(0, num, _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, num), dtype=np.uint64)
        items = indices + np.uint64(first)
        c1, c3 = np.full_like(items, epoch), np.full_like(items, purpose << 16)
        c0, c2 = items & _LOW, items >> _32
        c2 |= np.uint64(occurrence << 16)
        high, low, _, _ = _rounds(c0, c1, c2, c3, seed)
        high <<= _32
        high |= low
        high &= random_bits
        high |= indices
        keys[start : start + len(indices)] = high
    return keys
