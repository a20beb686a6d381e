"""Packing again into the folder of an earlier run: one that is through, was cut off, or was another."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packed_files import files
from waiting import LONG_S, wait_until

from softshard.shards import DataError, ImageRecipe, LabelTree, PackOptions, UsageError, pack, verify


def test_a_second_run_of_the_same_plan_makes_nothing_and_returns_the_same(source, tmp_path, options):
    first = pack(source, tmp_path / "set", options, workers=1)
    before = {path: path.stat().st_ino for path in (tmp_path / "set").rglob("*.tar")}
    assert pack(source, tmp_path / "set", options, workers=1) == first
    assert {path: path.stat().st_ino for path in (tmp_path / "set").rglob("*.tar")} == before


@pytest.mark.parametrize("lost", ["train-000001.tar", "train-000001.idx", "receipts/train-000001.tar.json"])
def test_a_resume_makes_again_what_is_missing(source, finished, finished_once, options, lost):
    (finished / "train" / lost).unlink()
    (finished / "train" / "manifest.json").unlink()
    pack(source, finished, options, workers=1)
    assert files(finished) == files(finished_once)


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"plan": 1'])
def test_a_damaged_receipt_counts_as_none(source, finished, finished_once, options, damage):
    (finished / "train" / "receipts" / "train-000000.tar.json").write_bytes(damage)
    pack(source, finished, options, workers=1)
    assert files(finished) == files(finished_once)


def test_a_cut_shard_is_made_again(source, finished, finished_once, options):
    shard = finished / "train" / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    pack(source, finished, options, workers=1)
    assert files(finished) == files(finished_once)


def test_what_a_killed_run_left_half_written_disappears(source, tmp_path, finished_once, options):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "plan.json.part").write_bytes(b"{")  # killed before it had a plan
    pack(source, tmp_path / "set", options, workers=1)
    for name in ("train-000001.tar.part", "train-000001.idx.part", "receipts/train-000001.tar.json.part"):
        (tmp_path / "set" / "train" / name).write_bytes(b"half")
    pack(source, tmp_path / "set", options, workers=1)
    assert files(tmp_path / "set") == files(finished_once)


def children(process):
    """Process ids of a process's children, those that have ended and wait for their parent left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == process and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Packs until a shard is finished; from then on its processes wait where they would read their next image.
HELD = """
import sys, time
from pathlib import Path
from softshard.shards import shard_task
from softshard.shards.cli import main

read_image = shard_task.read_image

def read_until_a_shard_is_finished(*arguments):
    while list(Path(sys.argv[3]).glob("train/receipts/*.json")):
        time.sleep(0.01)
    return read_image(*arguments)

shard_task.read_image = read_until_a_shard_is_finished
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def held_run(tmp_path, jpeg):
    """A run of two workers in another process that has finished a shard and never gets to the end of all twelve."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to see processes")
    (tmp_path / "source" / "a").mkdir(parents=True)
    for i in range(60):
        (tmp_path / "source" / "a" / f"{i}.jpg").write_bytes(jpeg(30, 40))
    (tmp_path / "held.py").write_text(HELD)
    command = [sys.executable, "held.py", "pack", "source", "set"]
    command += ["--size", "16", "--shard-samples", "5", "--workers", "2"]
    run = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: run.poll() is not None or list((tmp_path / "set").glob("train/receipts/*.json")))
        yield run
    finally:
        run.kill()
        shutil.rmtree(tmp_path / "set", ignore_errors=True)  # nothing of it is held any longer
        run.wait()
        run.stderr.close()


def test_a_killed_run_leaves_no_process_and_continues_to_the_end(tmp_path, held_run):
    workers = children(held_run.pid)
    assert len(workers) >= 2
    held_run.kill()
    wait_until(lambda: not any(map(is_running, workers)))
    receipts = list((tmp_path / "set" / "train" / "receipts").glob("*.json"))
    finished = {path: path.stat().st_ino for path in (path.parents[1] / path.stem for path in receipts)}
    assert 0 < len(finished) < 12
    assert not (tmp_path / "set" / "train" / "manifest.json").exists()
    options = PackOptions(image=ImageRecipe(16), shard_samples=5)
    assert pack(tmp_path / "source", tmp_path / "set", options, workers=2).packed == 60
    assert verify(tmp_path / "set").problems == []
    assert not list((tmp_path / "set").rglob("*.part"))
    assert {path: path.stat().st_ino for path in finished} == finished  # not made again


def test_a_worker_that_dies_is_reported_with_what_to_do(held_run):
    # Another child is multiprocessing's resource tracker.
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children(held_run.pid)}
    os.kill(next(child for child, command in commands.items() if "spawn_main" in command), signal.SIGKILL)
    text = held_run.communicate(timeout=LONG_S)[1]
    assert held_run.returncode == 2
    assert "expected worker processes to live, found one that died (killed, out of memory" in text
    assert "What is finished is kept: run it again to continue" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": ImageRecipe(17)}, "size was 16, is 17"),
        ({"image": ImageRecipe(16, quality=91)}, "quality was 90, is 91"),
        ({"shard_samples": 5}, "shard-samples was 4, is 5"),
        ({"shard_samples": None}, "shard-samples was 4, is the default"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"val_per_class": 2}, "val-per-class was 1, is 2"),
        ({"val_split": "lexical"}, "val-split was hash, is lexical"),
    ],
)
def test_a_changed_option_into_the_same_folder_is_refused(
    source, finished, finished_once, options, change, told
):
    with pytest.raises(UsageError, match=rf"of an earlier run: {told}\. Give the same again, or"):
        pack(source, finished, replace(options, **change), workers=1)
    assert files(finished) == files(finished_once)


def test_a_changed_source_tree_or_class_list_into_the_same_folder_is_refused(
    source, tmp_path, options, table_tree
):
    pack(source, tmp_path / "set", options, tree=table_tree, workers=1)
    with pytest.raises(UsageError, match=r"found .* of an earlier run: "):
        pack(source, tmp_path / "set", options, class_names=table_tree.classes, workers=1)
    cut = LabelTree.from_json(
        {**table_tree.to_json(), "max_levels": 1, "fingerprint": _fingerprint(table_tree)}
    )
    with pytest.raises(UsageError, match=r"found .* of an earlier run: "):
        pack(source, tmp_path / "set", options, tree=cut, workers=1)
    (source / "dog" / "new.jpg").write_bytes((source / "dog" / "dog_0.jpg").read_bytes())
    with pytest.raises(UsageError, match=r"found .* of an earlier run: "):
        pack(source, tmp_path / "set", options, tree=table_tree, workers=1)


def _fingerprint(tree):
    return replace(tree, max_levels=1).fingerprint


def test_another_pixel_stack_is_refused_and_both_are_named(source, finished, options):
    plan = json.loads((finished / "plan.json").read_bytes())
    plan["pixel_stack"]["pillow"] = "0.0.1"
    (finished / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(
        UsageError, match=r"expected the pixel stack .*'0\.0\.1'.* of the earlier run, found "
    ):
        pack(source, finished, options, workers=1)


def test_a_damaged_plan_is_refused(source, finished, options):
    (finished / "plan.json").write_bytes(b"{}")
    with pytest.raises(
        DataError, match=r"plan\.json: expected the plan of an earlier run, found: .*it is damaged"
    ):
        pack(source, finished, options, workers=1)


def test_a_retry_that_is_killed_leaves_no_receipt_of_a_shard_that_has_changed(
    source, tmp_path, finished_once, options, monkeypatch
):
    bad = sorted(source.rglob("*.jpg"))[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    pack(source, tmp_path / "set", options, workers=1)
    bad.write_bytes(whole)

    def killed(*args):
        raise KeyboardInterrupt  # the index has its name by now, the shard has not

    with monkeypatch.context() as patch:
        patch.setattr("softshard.shards.staged_files.RenamedFile.publish", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "set", options, workers=1, retry_bad=True)
    pack(source, tmp_path / "set", options, workers=1)
    assert verify(tmp_path / "set").ok
    assert files(tmp_path / "set") == files(finished_once)
