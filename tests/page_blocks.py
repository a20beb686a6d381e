"""The code of Markdown pages, run as it stands but for sizes and places."""

import os
import re
import subprocess

from waiting import LONG_S

_FENCE = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What still runs in the background when a command fails would keep the shell's output open.
_SHELL = "set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{code}\nenv -0 > {exported}\n"


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
    """Run commands as typed into a shell that stops at the first error.

    Returns:
        What the shell said, and the environment that it left behind, for the next block.
    """
    exported = folder / ".exported"
    shell = ["bash", "-c", _SHELL.format(code=code, exported=exported)]
    run = subprocess.run(shell, cwd=folder, env=environment, timeout=LONG_S, text=True, capture_output=True)
    assert run.returncode == 0, f"{code}\n{run.stdout}\n{run.stderr}"
    left = dict(entry.split("=", 1) for entry in exported.read_text().split("\0") if entry)
    exported.unlink()
    return run.stdout + run.stderr, left


def run_python(code, where, module):
    """Run Python in a module's namespace."""
    exec(compile(code, where, "exec"), vars(module))


def with_scripts(environment, *folders):
    """An environment whose PATH begins with these folders."""
    return environment | {"PATH": os.pathsep.join([*map(str, folders), environment["PATH"]])}
