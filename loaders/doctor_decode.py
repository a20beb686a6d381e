"""Decoding: doctor_probe.py in a process of its own, and what NVIDIA's driver says of itself."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from .doctor_finding import NOTE, WRONG, Finding

_PATIENCE_S = 180.0  # the first import of torch from a slow disk takes a minute
_LINE_BYTES = 300  # shown of a process's last words
# What the checks of the probe are for, where they fail.
_FIXES = {
    "libraries": "pip install --force-reinstall simplejpeg opencv-python-headless pillow",
    "DALI on the processor": "pip install --force-reinstall nvidia-dali-cuda120 torch: see which of both is named above, "
    "and that the versions belong together",
    "numba": "pip install --upgrade numba; without it numpy pools label maps, three times as slowly",
    "GPU": "see that the driver is new enough for this torch and DALI (nvidia-smi shows its CUDA version); until then "
    "device='cpu' works",
}


def check_decoding(python: Sequence[str] = (sys.executable,)) -> list[Finding]:
    """Decode for real: the sharder's libraries, and the loader's CPU and GPU path where their packages are installed."""
    checks = ["libraries"]
    findings = []
    missing = [name for name in ("nvidia.dali", "torch") if not _importable(name)]
    if missing:
        fix = "to load and train: pip install 'softshard[loaders]'; packing needs neither"
        findings.append(Finding("DALI and torch", f"not installed: {', '.join(missing)}", NOTE, fix))
    else:
        checks += ["DALI on the processor", "numba", "GPU"]
    return [*run_checks(checks, python), *findings, *check_driver()]


def run_checks(checks: Sequence[str], python: Sequence[str] = (sys.executable,)) -> list[Finding]:
    """What the probe finds; where its process fails or dies, the rest is tried in another one.

    Each process ends with the thread that calls this (see peer_process.end_with).
    """
    findings: list[Finding] = []
    rest = list(checks)
    while rest:
        code, lines, last_words = _run(
            [*python, "-m", "softshard.loaders.doctor_probe", str(os.getpid()), *rest]
        )
        for line in lines:
            if begun := line.get("begin"):
                rest = rest[rest.index(begun) :]
            else:
                findings.append(Finding(**line))
        if not code:
            break
        name = rest.pop(0)
        ending = f"the process died of {signal.Signals(-code).name}" if code < 0 else "fails"
        findings.append(Finding(name, f"{ending}: {last_words}".rstrip(": "), WRONG, _FIXES[name]))
    return findings


def check_driver(smi: str | None = None) -> list[Finding]:
    """The driver, and which engines decode: from nvidia-smi, where there is one."""
    smi = smi or shutil.which("nvidia-smi")
    if smi is None:
        return [
            Finding("NVIDIA driver", "none: no nvidia-smi", NOTE, "fine without a GPU; the CPU path is used")
        ]
    try:
        text = subprocess.run(
            [smi, "-q"], capture_output=True, text=True, timeout=60, check=True, errors="replace"
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        fix = "run nvidia-smi and see what it says; a driver that was updated needs a restart"
        return [Finding("NVIDIA driver", f"nvidia-smi fails: {error}"[:_LINE_BYTES], WRONG, fix)]
    return [Finding(name, found) for name, found in parse_smi(text).items()]


def parse_smi(text: str) -> Mapping[str, str]:
    """From `nvidia-smi -q`: versions, and the engines of each GPU that decode."""
    found = {}
    driver = re.search(r"Driver Version\s*: (\S+)", text)
    cuda = re.search(r"CUDA Version\s*: (\S+)", text)
    found["NVIDIA driver"] = (
        f"{driver[1] if driver else 'unknown'}, for CUDA up to {cuda[1] if cuda else '?'}"
    )
    # Engines that a GPU lacks have no utilization: "N/A".
    for index, gpu in enumerate(re.split(r"^GPU ", text, flags=re.MULTILINE)[1:]):
        section = gpu[gpu.find("Utilization") :]
        engines = []
        for what, key in (("JPEG", "JPEG"), ("video (NVDEC)", "Decoder")):
            value = re.search(rf"^\s+{key}\s*: (.+)$", section, re.MULTILINE)
            engines.append(f"{what}: {'no' if value is None or 'N/A' in value[1] else 'yes'}")
        found[f"decoder engines of cuda:{index}"] = ", ".join(engines)
    return found


def _run(command: Sequence[str]) -> tuple[int, list[dict], str]:
    """Exit code, the lines of JSON, and the last line of what the process said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, errors="replace")
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        out = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        code, err = 1, f"no end after {_PATIENCE_S:.0f} s"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    words = [line for line in err.splitlines() if line.strip()]
    return code, lines, words[-1][:_LINE_BYTES] if words else ""


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False
