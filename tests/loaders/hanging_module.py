"""A process in whose child a package hangs as soon as it is imported, and which is killed."""

import os
import select
import subprocess
import sys

from waiting import LONG_S, wait_until


def kill_above_what_hangs(folder, module, code):
    """Run Python code whose child imports the module, kill the process, and see the child end.

    Args:
        folder: an empty one.
        module: stands in `folder` before the package of that name, and hangs.
        code: of the process.
    """
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    hangs = f"file = open({str(fifo)!r}, 'w'); file.write('begun'); file.flush(); time.sleep({2 * LONG_S})"
    (folder / f"{module}.py").write_text(f"import time; {hangs}")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        try:
            assert (
                wait_until(lambda: select.select([reader], [], [], 0)[0] and os.read(reader, 99)) == b"begun"
            )
            process.kill()
            assert select.select([reader], [], [], LONG_S)[0]  # the end, since nobody holds it open to write
            assert os.read(reader, 99) == b""
        finally:
            process.kill()
            os.close(reader)
