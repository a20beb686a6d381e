"""The threat model names tests; they must be there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")


def test_every_test_that_the_threat_model_names_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    found = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.M)
    }
    assert len(named) > 40
    assert named - found == set()


def test_every_threat_names_a_test():
    rows = [
        line for line in PAGE.split("## Threats")[1].split("##")[0].splitlines() if line.startswith("| ")
    ][1:]
    assert len(rows) > 25
    assert [row for row in rows if "`test_" not in row.split("|")[-2]] == []


def test_the_page_counts_the_parsers_that_are_fuzzed():
    num = len((ROOT / "tests" / "fuzz" / "targets.txt").read_text().splitlines())
    assert f"each of the {num} parsers" in " ".join(PAGE.split())
