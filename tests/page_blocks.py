"""The code of Markdown pages, run as it stands but for sizes and places."""

import os
import re
import signal
import subprocess
import tempfile
from contextlib import suppress

from waiting import LONG_S

_FENCE = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SHELL = "set -euo pipefail\n{code}\nenv -0 > {exported}\n"


def code_blocks(text, *languages):
    """(language, code) of every fenced block in these languages, in order."""
    return [(language, code) for language, code in _FENCE.findall(text) if language in languages]


def put_in_place(code, texts):
    """Code with texts replaced, each exactly as often as it is said to be there.

    Args:
        code: of a block or a page.
        texts: text -> (what stands in its place, how often).
    """
    for text, (other, count) in texts.items():
        assert code.count(text) == count, f"expected {text!r} {count} times, found {code.count(text)}"
        code = code.replace(text, other)
    return code


def run_bash(code, folder, environment):
    """Run commands as typed into a shell that stops at the first error; what it leaves in the background ends with it.

    Returns:
        What the shell said, and the environment that it left behind, for the next block.
    """
    exported = folder / ".exported"
    shell = ["bash", "-c", _SHELL.format(code=code, exported=exported)]
    # A file and no pipe: what runs in the background would keep that open.
    with tempfile.TemporaryFile("w+") as output:
        options = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        run = subprocess.Popen(shell, cwd=folder, env=environment, **options)
        try:
            run.wait(LONG_S)
        finally:
            # No SIGKILL: torchrun is to end its workers, which have sessions of their own.
            with suppress(ProcessLookupError):  # nothing is left
                os.killpg(run.pid, signal.SIGTERM)
            run.wait()
        output.seek(0)
        said = output.read()
    assert run.returncode == 0, f"{code}\n{said}"
    left = dict(entry.split("=", 1) for entry in exported.read_text().split("\0") if entry)
    exported.unlink()
    return said, left


def run_python(code, where, module):
    """Run Python in a module's namespace."""
    exec(compile(code, where, "exec"), vars(module))


def with_scripts(environment, *folders):
    """An environment whose PATH begins with these folders."""
    return environment | {"PATH": os.pathsep.join([*map(str, folders), environment["PATH"]])}
