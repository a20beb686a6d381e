"""`softshard doctor`: looks at this machine, its packages and a data set, and says what is wrong and what mends it.

Runs with the base alone; decoders are tried in a process of their own, since a broken one may take its process down.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from ..shards.text_limits import counted
from ..shards.wordnet import TABLE_PATH, WordNet
from .doctor_decode import check_decoding
from .doctor_finding import FINE, NOTE, WRONG, Finding
from .doctor_machine import check_machine
from .doctor_packages import (
    check_hidden,
    check_packages,
    check_twice,
    installed_packages,
    own_requirements,
)
from .doctor_storage import check_data_set

_TAGGER = "averaged_perceptron_tagger_eng"  # of tags_nltk.py
_MARKS = {FINE: "ok", NOTE: "note", WRONG: "WRONG"}

Report = dict[str, list[Finding]]


def examine(data_set: str | None = None) -> Report:
    """Look at everything.

    Args:
        data_set: a path or URL to look at, too.

    Returns:
        Findings by part: packages, decoding, machine, data, and with a data set `data set`.
    """
    installed = installed_packages()
    report = {
        "packages": [
            *check_packages(installed, own_requirements()),
            *check_twice(installed),
            *check_hidden(),
        ],
        "decoding": check_decoding(),
        "machine": check_machine(),
        "word lists": check_words("nltk" in installed),
    }
    if data_set is not None:
        report["data set"] = check_data_set(data_set)
    return report


def check_words(has_nltk: bool) -> list[Finding]:
    """WordNet's table inside the package, and the data of NLTK's tagger, which only `--tagger nltk` needs."""
    try:
        wordnet = WordNet.load(TABLE_PATH)
    except Exception as error:  # whatever a damaged file makes of NumPy
        fix = "pip install --force-reinstall --no-deps softshard"
        findings = [Finding("WordNet", f"{TABLE_PATH.name}: {error}", WRONG, fix)]
    else:
        findings = [Finding("WordNet", f"{len(wordnet):,} nouns inside the package")]
    if has_nltk:
        findings.append(_nltk_tagger())
    return findings


def _nltk_tagger() -> Finding:
    name = f"nltk {version('nltk')}"
    try:
        import nltk.data

        nltk.data.find(f"taggers/{_TAGGER}/")
    except LookupError:
        fix = f"for --tagger nltk: python -m nltk.downloader {_TAGGER}"
        return Finding(name, f"without the data {_TAGGER}", NOTE, fix)
    except ImportError as error:
        return Finding(name, f"cannot be imported: {error}", WRONG, "pip install --force-reinstall nltk")
    return Finding(name, f"with the data {_TAGGER}")


def is_fine(report: Report) -> bool:
    """Whether nothing is wrong; notes are no fault."""
    return all(finding.state != WRONG for findings in report.values() for finding in findings)


def format_report(report: Report) -> str:
    """For a person: a line for each finding, and the fix below what needs one."""
    lines = []
    for part, findings in report.items():
        lines.append(part)
        for finding in findings:
            lines.append(f"  {_MARKS[finding.state]:<5}  {finding.name}: {finding.found}")
            if finding.fix:
                lines.append(f"         -> {finding.fix}")
    counts = [
        sum(one.state == state for found in report.values() for one in found) for state in (WRONG, NOTE)
    ]
    lines.append(f"{counts[0] or 'nothing'} wrong, {counted(counts[1], 'note')}")
    return "\n".join(lines)


def report_json(report: Report) -> dict[str, Any]:
    """For a program: {"fine": bool, part: [{"name", "found", "state", "fix"}, ...], ...}."""
    parts = {part: [asdict(finding) for finding in findings] for part, findings in report.items()}
    return {"fine": is_fine(report), **parts}
