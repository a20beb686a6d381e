"""What Ray runs for the tests: known by the folder in its environment, held where a test wants it, gone at the end."""

import os
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from waiting import wait_until

from softshard.shards.storage import LocalStorage


def processes(ray_folder):
    """Process id to command of what Ray runs out of a folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str(ray_folder).encode() not in (path / "environ").read_bytes():
                continue
            if int(path.name) != os.getpid() and (command := (path / "cmdline").read_text()):
                found[int(path.name)] = command
        except OSError:
            continue
    return found


def make_ray_folder():
    # Not tmp_path: Ray's sockets lie below it, and their names have 107 characters.
    return Path(tempfile.mkdtemp(prefix="ss", dir="/tmp"))


def remove_ray_folder(folder):
    """After Ray has stopped; its agents take a while to notice, and are killed."""
    for process in processes(folder):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not processes(folder))
    shutil.rmtree(folder, ignore_errors=True)


def held(job, hold, free=()):
    """A job whose tasks do not get further than reading an image while the file `hold` is there; those in `free` do."""

    class HeldStorage(LocalStorage):  # local, so that it goes to the nodes with its code
        def __reduce__(self):
            return HeldStorage, (self.root,)

        def read(self, path, *range_):
            while path not in free and hold.exists():
                time.sleep(0.01)
            return super().read(path, *range_)

    return replace(job, storage=HeldStorage(job.storage.root))


# The command, whose tasks wait where they would read every other of forty images `a/00.jpg`; its first word is `hold`.
HELD_COMMAND = f"""
import importlib, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ray_processes import held
from softshard.shards.cli import main
pack, hold = importlib.import_module("softshard.shards.pack"), Path(sys.argv.pop(1))
make_job = pack.make_job
odd = {{f"a/{{i:02d}}.jpg" for i in range(1, 40, 2)}}
pack.make_job = lambda *arguments: held(make_job(*arguments), hold, free=odd)
sys.exit(main())
"""
