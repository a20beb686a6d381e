"""Normalised pixels: the compiled loop, the table and numpy's two passes give the same bits."""

import sys

import numpy as np
import pytest

from softshard.loaders.decode import MEAN, STD
from softshard.loaders.normalize import by_table, load_kernel, normalization, normalizer


def every_value(width):
    """uint8 [256, width, 3] in which every channel of every column has every value."""
    values = np.arange(256, dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(values[:, None, None], (256, width, 3)))


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.1, 0.77, 0.5), (0.013, 0.9, 1 / 3))])
@pytest.mark.parametrize("kind", ["compiled", "table"])
def test_every_value_has_the_bits_of_numpys_two_passes(mean, std, kind):
    scale, shift = normalization(mean, std)
    pixels, out = every_value(7), np.empty((256, 7, 3), np.float32)
    if kind == "compiled":
        pytest.importorskip("numba")
        assert load_kernel() is not None
        normalizer(mean, std, 7)(pixels, out)
    else:
        by_table(scale, shift)(pixels, out)
    expected = np.multiply(pixels, scale, dtype=np.float32)
    expected += shift
    assert np.array_equal(out.view(np.uint32), expected.view(np.uint32))


def test_normalising_is_minus_mean_by_std():
    pixels, out = every_value(1), np.empty((256, 1, 3), np.float32)
    normalizer(MEAN, STD, 1)(pixels, out)
    expected = (np.arange(256)[:, None] / 255 - MEAN) / STD
    np.testing.assert_allclose(out[:, 0], expected, atol=1e-6)


def test_without_numba_the_table_serves(monkeypatch):
    load_kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    try:
        assert load_kernel() is None
        out = np.empty((256, 2, 3), np.float32)
        normalizer(MEAN, STD, 2)(every_value(2), out)
    finally:
        load_kernel.cache_clear()
    assert out[255, 1, 0] > out[0, 1, 0]
