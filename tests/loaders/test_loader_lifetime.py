"""Threads, files and the process itself: what is there while a loader runs, and gone afterwards."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import cv2
import pytest
from waiting import LONG_S, status_of

from softshard.loaders import Augment, Faults, Loader, decode
from softshard.shards import DataError


def make(dataset, **options):
    return Loader(
        dataset,
        **{"batch_size": 8, "augment": Augment(size=16), "dtype": "uint8", "num_threads": 2, **options},
    )


others = set()  # descriptors of shards that are other tests'


def open_tars():
    """Shards that this process has opened since a test here began (a mapping holds a descriptor of its file)."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return [
        link
        for link in links
        if os.path.lexists(link) and str(os.readlink(link)).endswith(".tar") and link not in others
    ]


@pytest.fixture(autouse=True)
def nothing_of_other_tests():
    """What tests before left in reference cycles goes now, and not in the middle of one here."""
    gc.collect()
    others.clear()
    others.update(open_tars())


def threads(name="softshard"):
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_close_ends_the_threads_and_lets_the_shards_go_before_it_returns(packed):
    loader = make(packed)
    iterator = iter(loader)
    next(iterator)
    (producer,) = threads("softshard-loader")
    assert producer.is_alive()
    assert threads("softshard-resample")
    assert open_tars()
    loader.close()
    assert threads() == []
    del iterator
    assert open_tars() == []
    loader.close()  # again, without harm


def test_breaking_off_ends_the_iterations_thread_at_once(packed):
    with make(packed) as loader:
        for _ in loader:
            break
        assert threads("softshard-loader") == []


def test_an_exception_in_the_loop_ends_the_iterations_thread(packed):
    with make(packed) as loader:
        try:
            for _ in loader:
                raise KeyError("the caller's own")
        except KeyError:
            pass
        assert threads("softshard-loader") == []


def test_a_loader_that_is_forgotten_in_the_middle_of_an_epoch_leaves_nothing(packed, remaining_threads):
    loader = make(packed)
    iterator = iter(loader)
    next(iterator)
    del loader, iterator
    gc.collect()
    assert remaining_threads() == []
    assert open_tars() == []


def test_a_loader_in_a_reference_cycle_leaves_nothing_after_garbage_collection(packed, remaining_threads):
    holder = {"loader": make(packed)}
    holder["iterator"] = iter(holder["loader"])
    next(holder["iterator"])
    holder["self"] = holder
    del holder
    gc.collect()
    assert remaining_threads() == []
    assert open_tars() == []


def test_a_loop_that_is_collected_in_a_thread_of_its_own_is_not_waited_for_there(packed, monkeypatch, within):
    """The loader's thread waits for those that resample, and one of them for it."""
    given, closed, plain, to_come = threading.Event(), threading.Event(), decode.resize, list(range(9))

    def resize(*window, **options):
        if to_come and not to_come.pop():  # the first image of the second batch
            assert given.wait(LONG_S)
            batches.close()  # as the collection of garbage does
            closed.set()
        return plain(*window, **options)

    monkeypatch.setattr(decode, "resize", resize)
    with make(packed) as loader:
        batches = iter(loader)
        next(batches)
        given.set()
        assert within(lambda: closed.wait(LONG_S))
        assert within(lambda: len(list(loader))) == len(loader)


def test_an_error_that_was_dealt_with_keeps_nothing_alive(damage):
    # Without garbage collection: a traceback that refers to itself would keep loader and shards for a while.
    folder, _, key = damage(31, "cls", lambda data: b"9")
    loader = make(folder, faults=Faults(max_bad=0))
    gone = weakref.ref(loader)
    gc.disable()
    try:
        with contextlib.suppress(DataError):
            list(loader)
            raise AssertionError(f"expected an error of {key}")
        loader.close()
        del loader
        assert gone() is None
        assert open_tars() == []
    finally:
        gc.enable()


def test_files_and_threads_do_not_add_up_over_epochs(packed):
    def counts():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(open_tars())

    with make(packed) as loader:
        list(loader)
        after_one = counts()
        for _ in range(5):
            list(loader)
        for _ in loader:
            break
        assert counts() == after_one
        assert after_one[2] == len(loader.manifest.shards)


END_IN_THE_MIDDLE = """
import sys
from softshard.loaders import Augment, Faults, Loader
loader = Loader(sys.argv[1], batch_size=4, augment=Augment(size=16), num_threads=2)
iterator = iter(loader)
next(iterator)
"""


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("", 0, ""),
        (
            "import time\nwhile loader.stats().queue_depth < loader.stats().queue_size: time.sleep(0.01)",
            0,
            "",
        ),
        ("raise LookupError('the script failed')", 1, "LookupError: the script failed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
    ],
    ids=["end", "end with a full queue", "exception", "interrupt"],
)
def test_a_script_may_end_in_the_middle_of_an_epoch(packed, ending, code, said):
    # An aborted process (a C++ thread inside DALI while the interpreter goes down) would end with -SIGABRT.
    script = [sys.executable, "-c", END_IN_THE_MIDDLE + ending, str(packed)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=LONG_S)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "terminate" not in done.stderr


FORK = """
import os, sys
from softshard.loaders import Augment, Loader
def make(**augment):
    return Loader(sys.argv[1], batch_size=8, augment=Augment(size=16, **augment), dtype="uint8", num_threads=2)
loader, unused = make(), make(color_jitter=0.4)
iterator = iter(loader)
next(iterator)
with loader._maker._resample.pool()._shutdown_lock:  # as where a thread is just being given work
    child = os.fork()
if not child:
    DO
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert len(list(iterator)) == len(loader) - 1
sys.exit(os.waitstatus_to_exitcode(status) - 7)
"""


def test_a_forked_process_may_end(packed):
    # Of an interpreter of its own: how that goes down is what this is about.
    script = [sys.executable, "-c", FORK.replace("DO", "pass"), str(packed)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "do",
    ["loader.close()", "assert len(list(make())) == len(loader)", "assert len(list(unused)) == len(loader)"],
    ids=["close", "another", "unused"],
)
def test_a_forked_process_may_close_build_another_loader_and_use_one_that_nobody_has(packed, forks, do):
    done = forks.run(packed, code=FORK.replace("DO", do))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("do", ["next(iterator)", "list(loader)"])
def test_a_forked_process_is_told_that_the_loader_is_its_parents(packed, forks, do):
    done = forks.run(packed, code=FORK.replace("DO", do))
    assert (
        "UsageError: loader: expected the process that iterated this loader, found one forked from it"
        in done.stderr
    )


def test_opencv_has_its_threads_again_when_the_last_loader_is_gone_whichever_that_is(packed):
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        train, val, other = (make(packed) for _ in range(3))
        for loader in (train, val, other):
            next(iter(loader))
        assert cv2.getNumThreads() == 1
        train.close()
        assert cv2.getNumThreads() == 1
        other.close()
        del val, loader  # without a word
        gc.collect()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


STOPPED = """
import os, signal, sys, threading
from softshard.loaders import background

looked = threading.Semaphore(0)

def numbers():
    looked.acquire()  # the item is waited for
    os.kill(os.getpid(), signal.SIGSTOP)
    for _ in range(3):  # what was waited for has been counted since
        looked.acquire()
    yield 1

def watch(waited_s):
    if waited_s > 2.5:
        sys.exit(f"waited for {waited_s} s")
    looked.release()

background._LOOK_S = 0.05
run = background.Background(numbers, 1, watch)
run.start()
assert run.next() == 1
run.stop()
"""


def test_time_in_which_the_process_was_stopped_is_no_stall():
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stderr=subprocess.PIPE, text=True)
    assert os.WIFSTOPPED(status_of(process.pid, os.WUNTRACED))
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=LONG_S)[1] == ""
    assert process.returncode == 0
