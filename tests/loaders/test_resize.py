"""Windows to the pixels of a batch: against the filter's formula, in real numbers."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from waiting import LONG_S, status_of

from softshard.loaders import one_thread
from softshard.loaders.one_thread import OneThreadEach, one_thread_each
from softshard.loaders.resize import resize

# Height and width of a window, side of the result: both grow, both shrink, one of each, whole factors, single pixels.
SHAPES = [
    (20, 30, 40),
    (60, 45, 40),
    (17, 90, 40),
    (90, 17, 40),
    (80, 80, 40),
    (40, 40, 40),
    (41, 40, 40),
    (333, 500, 24),
    (1, 1, 7),
    (1, 50, 7),
    (50, 1, 7),
    (5, 9, 1),
]


def weights(num, wanted):
    """Float64 [wanted, num]: a triangle of the factor's half width where a side shrinks, of one pixel where it grows."""
    factor = num / wanted
    centres = (np.arange(wanted)[:, None] + 0.5) * factor
    distances = np.abs(np.arange(num) + 0.5 - centres) / max(factor, 1)
    found = np.maximum(1 - distances, 0)
    return found / found.sum(axis=1, keepdims=True)


def plain(window, side):
    """Float64 [S, S, 3]."""
    rows, columns = weights(window.shape[0], side), weights(window.shape[1], side)
    return np.einsum("yh,xw,hwc->yxc", rows, columns, window.astype(float), optimize=True)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def resized(window, side, flip=False):
    out = np.full((side, side, 3), 99, np.uint8)
    assert resize(window, out, flip=flip) is out
    return out


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2))


@pytest.mark.parametrize(("height", "width", "side"), SHAPES)
def test_every_pixel_is_close_to_the_triangle_filter(height, width, side):
    window = noise(height, width)
    assert np.abs(resized(window, side) - plain(window, side)).max() < 1.1


@settings(max_examples=60)
@given(st.integers(1, 130), st.integers(1, 130), st.integers(1, 60), st.integers(0, 255))
def test_one_colour_stays_what_it_is_and_a_flip_comes_last(height, width, side, value):
    even = np.full((height, width, 3), value, np.uint8)
    assert (resized(even, side) == value).all()
    window = noise(height, width, seed=value)
    np.testing.assert_array_equal(resized(window, side, flip=True), resized(window, side)[:, ::-1])


@pytest.mark.parametrize("length", [150, 100, 60, 33])
def test_a_ramp_stays_a_ramp_away_from_the_borders(length):
    ramp = np.broadcast_to(np.linspace(0, 255, length)[:, None], (length, 3))
    window = np.ascontiguousarray(np.broadcast_to(np.rint(ramp).astype(np.uint8), (length, length, 3)))
    centres = (np.arange(50) + 0.5) * length / 50 - 0.5
    expected = np.rint(centres * 255 / (length - 1))
    inner = slice(4, -4)
    for axis, turned in enumerate((window, np.ascontiguousarray(window.transpose(1, 0, 2)))):
        found = resized(turned, 50).astype(int)
        rows = found if axis == 0 else found.transpose(1, 0, 2)
        assert np.abs(rows[:, inner, :] - expected[None, inner, None]).max() <= 1


@pytest.mark.parametrize(("height", "width", "side"), [(96, 120, 32), (300, 260, 224), (500, 333, 224)])
def test_fine_texture_is_reduced_as_pillow_does(height, width, side):
    window = noise(height, width)
    expected = Image.fromarray(window).resize((side, side), Image.Resampling.BILINEAR)
    assert psnr(resized(window, side), expected) > 50


def test_stripes_finer_than_the_result_become_grey():
    window = np.zeros((128, 128, 3), np.uint8)
    window[::2] = 255
    assert np.abs(resized(window, 40).astype(int) - 128).max() <= 10  # without antialiasing 0 to 255


def test_windows_of_single_rows_and_columns_go_where_they_belong():
    window = noise(200, 1)
    out = np.zeros((2, 20, 20, 3), np.uint8)
    resize(window, out[1])
    assert not out[0].any()
    np.testing.assert_array_equal(out[1], resized(window, 20))


PLAIN_CODE = """
import sys
import numpy as np
import torch
from softshard.loaders.resize import resize
torch.set_num_threads(3)
print(torch.backends.cpu.get_cpu_capability())
windows = np.load(sys.argv[1])
np.savez(sys.argv[2], **{
    name: resize(windows[name], np.empty((int(name.partition("-")[2]),) * 2 + (3,), np.uint8)) for name in windows
})
"""


def test_processors_without_vector_code_give_the_same_pixels(tmp_path):
    """torch's plain code, which runs where it has no vector code, in several threads."""
    windows = {f"{i}-{side}": noise(height, width) for i, (height, width, side) in enumerate(SHAPES)}
    np.savez(tmp_path / "windows.npz", **windows)
    command = [sys.executable, "-c", PLAIN_CODE, tmp_path / "windows.npz", tmp_path / "found.npz"]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    assert ran.stdout.strip() in ("DEFAULT", "NO AVX")
    found = np.load(tmp_path / "found.npz")
    for name, window in windows.items():
        np.testing.assert_array_equal(found[name], resized(window, int(name.partition("-")[2])))


def test_threads_that_keep_torch_to_themselves_leave_the_others_their_number():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread_each(2, "test") as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("nth", range(1, 5), ids=["first", "second", "third", "fourth"])
def test_a_thread_that_cannot_be_started_is_an_error_that_leaves_no_thread_waiting(monkeypatch, nth):
    """Two threads are started, and one more for each of them, which gives torch's setting back."""
    plain, started, lock = threading.Thread.start, [], threading.Lock()

    def start(thread):
        with lock:
            started.append(thread)
            fails = len(started) == nth
        if fails:
            raise RuntimeError("can't start new thread")
        plain(thread)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                one_thread_each(2, "test")
        assert len(started) >= nth
        for thread in started:
            if thread.ident is not None:
                thread.join(LONG_S)
                assert not thread.is_alive()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("begun", [False, True])
def test_threads_that_were_stopped_do_not_begin_again(begun):
    threads = OneThreadEach(2, "stopped-threads")
    if begun:
        threads.pool()
    threads.close()
    with pytest.raises(RuntimeError, match="stopped-threads: expected threads that run, found"):
        threads.share_out(print, 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stopped-threads")]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_has_a_lock_of_its_own_for_the_setting():
    with one_thread._setting_threads:
        child = os.fork()
        if not child:
            os._exit(0 if one_thread._setting_threads.acquire(blocking=False) else 1)
        assert os.waitstatus_to_exitcode(status_of(child)) == 0
