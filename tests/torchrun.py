"""torchrun, by which users start several processes; tests of what is not about it use forked.py."""

import os
import subprocess
import sys

from waiting import LONG_S

GRACE_S = 60  # for torchrun to end its processes, which are in sessions of their own


def torchrun(script, *arguments, processes, folder=None, **environment):
    """Run a script's processes in a folder.

    Returns:
        subprocess.CompletedProcess, with what all of them printed.

    Raises:
        subprocess.TimeoutExpired: it took too long; its processes are gone.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    command = [*map(str, [sys.executable, *launcher, script, *arguments])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **streams) as launched:
        try:
            printed = launched.communicate(timeout=LONG_S)
        except subprocess.TimeoutExpired:
            launched.terminate()
            launched.communicate(timeout=GRACE_S)
            raise
        finally:
            launched.kill()
    return subprocess.CompletedProcess(command, launched.returncode, *printed)
