import argparse
import importlib.util
import json
import re
import subprocess
import sys
import warnings

import pytest
from waiting import LONG_S

from softshard.shards import Manifest
from softshard.shards.cli_values import byte_size

COMMAND = [sys.executable, "-c", "import sys; from softshard.shards.cli import main; sys.exit(main())"]
SMALL = ["--size", "16", "--shard-samples", "4", "--workers", "1"]


@pytest.fixture
def class_list(tmp_path):
    (tmp_path / "classes.txt").write_text("bird\ndog\noak\n")
    return tmp_path / "classes.txt"


def test_help_lists_the_commands_of_every_package(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("tree", "pack", "verify", "stats", "bench", "train", "evaluate", "demo", "maps"):
        assert re.search(rf"^ +{command}\s", out, re.MULTILINE), command


def test_version_and_help_end_with_zero(run):
    assert run("--version")[:2] == (0, "softshard 0.1.0\n")
    for command in ("pack", "verify", "stats", "tree"):
        assert run(command, "--help")[0] == 0


def test_tree_pack_verify_stats_one_after_the_other(run, tmp_path, source, class_list):
    tree, data = tmp_path / "tree.json", tmp_path / "set"
    code, out, err = run("tree", "build", "--classes", class_list, "--inner", "branching", "-o", tree)
    assert (code, err) == (0, "")
    assert "3 listed" in out
    code, out, _ = run("tree", "show", tree, "dog")
    assert code == 0
    assert "dog: class 1" in out
    code, out, err = run("pack", source, data, "--tree", tree, "--val-per-class", 1, *SMALL)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "read 16 = packed 16 + bad 0"
    assert f"{data}/train: 13 samples of 4 classes in 4 shards" in out
    code, out, err = run("verify", data, "--decode")
    assert (code, out, err) == (0, "16 samples in 5 shards: no problems\n", "")
    code, out, _ = run("stats", data)
    assert code == 0
    assert out.startswith("train: 13 samples in 4 shards")


def test_pack_verify_and_stats_print_json_where_it_is_asked_for(run, tmp_path, source):
    code, out, _ = run("pack", source, tmp_path / "set", *SMALL, "--json")
    summary = json.loads(out)
    assert code == 0
    assert (summary["read"], summary["packed"], summary["bad"]) == (16, 16, 0)
    manifest = Manifest.load(tmp_path / "set" / "train")
    assert summary["datasets"]["train"]["fingerprint"] == manifest.fingerprint
    code, out, _ = run("verify", tmp_path / "set", "--json")
    assert json.loads(out) == {"ok": True, "shards": 4, "samples": 16, "problems": []}
    code, out, _ = run("stats", tmp_path / "set", "--json")
    assert json.loads(out)[0]["samples"] == 16
    (tmp_path / "set" / "train" / "train-000000.tar").unlink()
    code, out, _ = run("verify", tmp_path / "set", "--json")
    assert code == 1
    assert len(json.loads(out)["problems"]) == 1


def test_verify_prints_every_problem_of_every_data_set_and_ends_with_one(run, packed, tmp_path):
    (packed / "train" / "train-000000.tar").unlink()
    (packed / "val" / "val-000000.idx").unlink()
    code, out, err = run("verify", tmp_path / "nowhere", packed / "train", packed / "val")
    lines = out.splitlines()
    assert (code, err) == (1, "")
    assert lines[0].startswith(f"{tmp_path / 'nowhere'}: expected a data set")
    assert lines[1].startswith(f"{packed}/train/train-000000.tar: expected a shard of ")
    assert lines[2].startswith(f"{packed}/val/val-000000.idx: expected the shard's index")
    assert lines[3] == "13 samples in 4 shards: 3 problems"


def test_bad_data_ends_with_one(run, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = run("pack", tmp_path / "empty", tmp_path / "set")
    assert (code, out) == (1, "")
    assert err == (
        f"softshard: {tmp_path / 'empty'}: expected class folders, found an empty folder. "
        "Give the folder whose subfolders are the classes: SRC/<class>/<image>.jpg\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["pack"],
        ["pack", "SRC", "DST", "--size", "big"],
        ["pack", "SRC", "DST", "--shard-bytes", "-1"],
        ["pack", "SRC", "DST", "--workers", "0"],
        ["pack", "SRC", "DST", "--quality", "0"],
        ["pack", "nowhere", "DST"],
        ["pack", "SRC", "SRC/out"],
        ["pack", "SRC", "DST", "--classes", "nowhere.txt"],
        ["pack", "SRC", "DST", "--tree", "nowhere.json"],
        ["tree", "build", "--classes", "nowhere.txt", "-o", "x.json"],
        ["tree", "show", "nowhere.json"],
        ["verify", "nowhere://bucket/set"],
        ["stats", "nowhere://bucket/set"],
    ],
)
def test_a_wrong_call_ends_with_two_and_says_why(run, source, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*(argument.replace("SRC", str(source)) for argument in arguments))
    assert (code, out) == (2, "")
    assert "expected" in err or "usage:" in err or "cannot be read" in err
    assert not (tmp_path / "DST" / "train").exists()


def test_a_folder_that_cannot_be_written_is_no_traceback(run, source, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = run("pack", source, tmp_path / "file" / "set", *SMALL)
    assert (code, out) == (2, "")
    assert err == f"softshard: {tmp_path / 'file' / 'set'}: Not a directory\n"


def test_a_class_that_is_not_in_wordnet_is_named_with_what_to_do(run, tmp_path, class_list):
    class_list.write_text("dog\nblorp\nn00000001\n")
    code, out, err = run("tree", "build", "--classes", class_list, "-o", tmp_path / "tree.json")
    assert (code, out) == (1, "")
    assert err == (
        "softshard: class 'blorp': expected a wnid or a noun of WordNet 3.0, found neither; name the class by its "
        "wnid (n02123045), or give your own child,parent table\n"
        "class 'n00000001': expected a wnid or a noun of WordNet 3.0, found neither; name the class by its "
        "wnid (n02123045), or give your own child,parent table\n"
    )
    assert not (tmp_path / "tree.json").exists()


def test_a_tree_of_one_level_warns(run, tmp_path, class_list):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        code, _, err = run("tree", "build", "--classes", class_list, "-o", tmp_path / "tree.json")
        warnings.showwarning = shown
    assert code == 0
    assert err.startswith("softshard: warning: the label tree has one level, of 3 classes")


def test_a_table_gives_the_tree(run, tmp_path, class_list):
    (tmp_path / "table.csv").write_text("child,parent\nbird,animal\ndog,animal\noak,plant\n")
    arguments = ["tree", "build", "--classes", class_list, "--relations", tmp_path / "table.csv"]
    arguments += ["-o", tmp_path / "t.json"]
    code, out, _ = run(*arguments)
    assert code == 0
    assert "2 levels of 2 3 classes" in out
    code, again, _ = run(*arguments, "--inner", "all")
    assert (code, again) == (0, out)
    for inner in ("none", "branching"):
        code, _, err = run(*arguments, "--inner", inner)
        assert code == 2
        assert "the inner nodes of your own file are always classes" in err
    code, _, err = run(*arguments, "--parents", "published")
    assert code == 2
    assert "expected relations of WordNet" in err


def test_packing_imports_no_extra(source, tmp_path):
    code = (
        "import sys; from softshard.shards.cli import main; "
        f"assert main(['pack', {str(source)!r}, {str(tmp_path / 'set')!r}, *{SMALL!r}]) == 0; "
        "sys.exit(' '.join({'torch', 'nvidia.dali', 'timm', 'ray'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert Manifest.load(tmp_path / "set" / "train").num_samples == 16


def test_nothing_but_errors_goes_to_standard_error_when_it_is_no_terminal(source, tmp_path):
    command = [*COMMAND, "pack", source, tmp_path / "set", *SMALL[:-1], "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_of_the_output_that_goes_away_is_no_error(packed_once):
    stats = subprocess.Popen(
        [*COMMAND, "stats", packed_once, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    stats.stdout.close()
    assert stats.communicate(timeout=LONG_S)[1] == b""
    assert stats.returncode == 0


def test_a_class_list_is_known_by_its_name(run, source, tmp_path):
    if importlib.util.find_spec("timm") is None:  # finding it does not import torch
        pytest.skip("needs timm's wheel")
    code, _, err = run("pack", source, tmp_path / "set", "--classes", "imagenet-1k")
    assert code == 1
    assert "that is in the class list, found none among 3: 'bird', 'dog', 'oak'" in err


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512B", 512), ("1kb", 1000), ("256MB", 256_000_000), ("1.5 GiB", 3 * 2**29), ("1MiB", 2**20)],
)
def test_a_size_is_a_number_of_bytes_with_or_without_a_unit(text, size):
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1TB", "1 M B", "1e3"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as 256MB"):
        byte_size(text)
