"""Storage that hangs: what waits for it says so, gives up, and can be ended."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from waiting import LONG_S, wait_until

from softshard.loaders import Augment, Faults, Loader
from softshard.shards import Manifest, UsageError
from softshard.shards.errors import StallError

OPTIONS = {"batch_size": 4, "augment": Augment(size=16), "dtype": "uint8", "shuffle": False, "num_threads": 2}


@pytest.fixture
def index(packed, tmp_path):
    """The second shard's index in a copy of the set: a pipe that nobody writes to, and whoever opens it waits for ever."""
    folder = shutil.copytree(packed, tmp_path / "set")
    index = (folder / Manifest.load(folder).shards[1].name).with_suffix(".idx")
    index.unlink()
    os.mkfifo(index)
    yield index
    threads = [thread for thread in threading.enumerate() if thread.name == "softshard-loader"]
    if threads:  # still waits for the pipe
        pipe = os.open(index, os.O_WRONLY | os.O_NONBLOCK)
        index.unlink()
        os.close(pipe)
        for thread in threads:
            thread.join(LONG_S)


def begin(loader):
    """An iteration that hangs after a batch or two, which take as long as the machine does; and what watches over it."""
    batches = iter(loader)
    next(batches)
    return batches, loader._running._watch


def test_a_stalled_stage_is_named_and_in_the_end_given_up(index, caplog, within):
    stage = rf"in 'shard' of {index.stem}.tar for \d+ s"
    with (
        caplog.at_level(logging.WARNING, "softshard.loaders"),
        Loader(index.parent, faults=Faults(stall_s=0.5), **OPTIONS) as loader,
    ):
        batches, watch = begin(loader)

        def give_up_when_it_was_said():
            wait_until(lambda: re.search(rf"no batch for \d+ s: {stage}", caplog.text))
            watch._give_up_s = 1.0

        giving_up = threading.Thread(target=give_up_when_it_was_said)
        giving_up.start()
        with pytest.raises(StallError, match=f"expected a batch within 1 s, found none: {stage}"):
            within(lambda: list(batches))
        giving_up.join(LONG_S)


def test_a_loader_whose_thread_hangs_is_not_iterated_again(index, within):
    loader = Loader(index.parent, **OPTIONS)
    batches, watch = begin(loader)
    watch._give_up_s = 1.0  # before the first warning, too
    with pytest.raises(StallError):
        within(lambda: list(batches))
    with pytest.raises(UsageError, match="given up and still hangs"):
        within(lambda: list(loader))
    within(loader.close)


def run(code, index):
    """A process that reads the set; what became of it."""
    head = "import os, signal, sys, threading\nfrom softshard.loaders import Loader, background\n"
    command = [sys.executable, "-c", head + code, str(index.parent), str(index)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)


GIVE_UP = """
loader = Loader(sys.argv[1], batch_size=4, shuffle=False)
batches = iter(loader)
next(batches)
loader._running._watch._give_up_s = 2.0
list(batches)
"""


def test_a_process_whose_storage_is_dead_ends(index):
    done = run(GIVE_UP, index)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "StallError: loader: expected a batch within 2 s" in last
    assert f"in 'shard' of {index.stem}.tar for " in last


INTERRUPT = """
background._INTERRUPT_PATIENCE_S = 1.0

def interrupt():
    global pipe
    pipe = open(sys.argv[2], "wb")  # comes back when somebody has opened it at the other end, and waits for bytes
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
with Loader(sys.argv[1], batch_size=8, shuffle=False) as loader:
    list(loader)
"""


def test_ctrl_c_ends_a_process_that_waits_for_dead_storage(index):
    done = run(INTERRUPT, index)
    assert done.returncode == -signal.SIGINT
    assert "hangs, and is left to itself" in done.stderr
