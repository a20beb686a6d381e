"""A training script in two processes, as torchrun starts them."""

import json
import os
import subprocess
import sys

from waiting import LONG_S


def run_two(script, dataset, folder, **environment):
    """Run a script on (data set, folder); what each of the two ranks wrote to `RANK.json`."""
    (folder / "train.py").write_text(script)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *launcher, str(folder / "train.py"), str(dataset), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        timeout=LONG_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
