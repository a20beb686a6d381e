"""Every benchmark has a section that says what it means, a command that makes its table, and a result file."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from waiting import LONG_S

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "benchmarks" / "README.md").read_text()
NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\d)")
SECTIONS = {
    title.partition(".py")[0].strip("`"): body
    for title, body in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
# Not questions of their own: what all of them share, servers for two of them, an input of label_maps, parts of faults.
PARTS = {"harness", "serving", "teacher_maps", "fault_list", "fault_contenders"}
# Needs what was not there yet: a section without a result file, which says so.
UNMEASURED = {"gpu"}
SCRIPTS = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - PARTS - UNMEASURED


def rows_of_commands():
    """script -> (make's target, result file), from the table of commands."""
    found = re.findall(r"^\| `make ([\w-]+)` \|.*\]\((results/\w+\.json)\)", PAGE, re.MULTILINE)
    return {target.removeprefix("bench-"): (target, result) for target, result in found}


def test_every_script_has_a_section_and_a_row_of_commands():
    assert set(SECTIONS) - UNMEASURED == set(rows_of_commands()) == SCRIPTS


@pytest.mark.parametrize("script", sorted(UNMEASURED))
def test_what_was_never_measured_says_so(script):
    assert "Nothing has been measured yet" in SECTIONS[script]
    assert not (ROOT / "benchmarks" / "results" / f"{script}.json").exists()


def test_make_bench_runs_every_script_but_the_soak():
    make = subprocess.run(
        ["make", "--dry-run", "bench"], cwd=ROOT, capture_output=True, text=True, timeout=LONG_S, check=True
    )
    run = re.findall(r"python (\w+)\.py", make.stdout)
    assert sorted(run) == sorted((SCRIPTS | UNMEASURED) - {"soak"})


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_section_says_where_softshard_loses(script):
    assert re.search(r"[Ww]here (softshard|semantic softmax|label maps) loses?\b", SECTIONS[script])


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_result_file_is_of_the_machine_that_the_page_names(script):
    machine = json.loads((ROOT / "benchmarks" / rows_of_commands()[script][1]).read_text())["machine"]
    head = PAGE.partition("## `")[0]
    assert machine["processor"] in head
    assert f"Python {machine['python']}," in head
    packages = {name: version for name, version in machine["packages"].items() if name != "softshard"}
    assert [name for name, version in packages.items() if version not in head] == []


def test_numbers_of_decisions_stand_where_these_link_to():
    """A table that was measured again changes the numbers of what was decided by it. Of two digits they are rounded."""
    alone = {"112", "0.31"}  # reckoned, and tried once: what the page's head says
    missing = []
    for paragraph in (ROOT / "docs" / "decisions.md").read_text().split("\n\n"):
        sections = [SECTIONS[name] for name in re.findall(r"benchmarks/README\.md#(\w+)py-", paragraph)]
        modules = re.findall(r"`((?:shards|loaders|training)/\w+\.py)`", paragraph)
        there = "".join([*sections, *((ROOT / name).read_text() for name in [*modules, "shards/FORMAT.md"])])
        for number in set(NUMBER.findall(re.sub(r"\]\([^)]*\)", "]", paragraph))) - alone if sections else ():
            if len(re.sub(r"\D", "", number)) > 2 and number not in NUMBER.findall(there):
                missing.append(number)
    assert missing == []
