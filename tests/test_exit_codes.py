"""Every command once as it should be and once with something wrong: the exit codes of docs/operating.md."""

import argparse
import errno
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzz import whole_files as whole
from json_page import documented, read_json
from waiting import LONG_S, first_line

from softshard.shards.cli import build_parser, main
from softshard.shards.cli_help import commands_of

LEAVES = sorted(
    name
    for name, parser in commands_of(build_parser())
    if not any(isinstance(one, argparse._SubParsersAction) for one in parser._actions)
)
TRAIN = (
    "train single-label {set} --model test_resnet --out {run} --epochs 1 --global-batch 4 --image-size 32 "
    "--device cpu --check-images"
)
GOOD = [
    TRAIN,
    "bench {set} --batch-size 2 --steps 2 --repeats 1 --size 16",
    "completion bash",
    "evaluate {run}/checkpoint.pt {set} --device cpu",
    "inspect {set} --out {new}.html",
    "maps import {maps} {new} --workers 1",
    "pack {images} {new} --size 16 --workers 1",
    "predict {run}/checkpoint.pt {image} --device cpu",
    "pseudo make {set} {new} --model {run}/checkpoint.pt --device cpu",
    "replay {set} --batch-size 4 --size 16",
    "reshard {set} {new}",
    "stats {set}",
    "subset classes {set} --method random --num-classes 2 -o {new}.json",
    "subset confusion {set} --model {run}/checkpoint.pt -o {new}.csv",
    "subset evaluate {curves}",
    "subset images {set} -m 1 -o {new}.json",
    "tags build {texts} -o {new}.jsonl --min-images 1 --max-share 1 --workers 1",
    "tags show n01440764 --classes {classes}",
    "tags weigh {texts} -o {new}.jsonl --classes {classes}",
    "teacher make {set} {new} --teacher {run}/checkpoint.pt --device cpu",
    "tree build --classes {classes} --inner branching -o {new}.json",
    "tree check {set}/tree.json --dataset {set}",
    "tree export {set}/tree.json --format csv -o {new}.csv",
    "tree show {set}/tree.json",
    "tree stats {set}/tree.json",
    "verify {set}",
]
# What takes a server, a teacher or many runs ends with 0 in tests of its own.
ELSEWHERE = {
    "demo": "test_two_classes_of_few_images_are_enough",
    "doctor": "test_decodes_for_real_and_looks_at_everything",
    "maps check": "test_without_a_teacher_only_the_labels_are_compared",
    "maps join": "test_side_shards_joined_give_the_same_data_set",
    "maps make": "test_two_processes_make_the_same_bytes_as_one",
    "maps study": "test_a_study_with_all_contenders_writes_its_table",
    "serve": "test_drain_finishes_what_is_under_way_and_sends_clients_elsewhere",
    "subset score": "test_the_command_writes_the_same_scores_and_tells_their_mean",
    "subset study": "test_the_command_trains_evaluates_and_continues",
    "tags study": "test_the_command_prints_a_table",
}
# Data that are damaged or not there: 1. A call that nobody can do: 2.
BAD = [
    (1, "bench {missing}"),
    (2, "completion tcsh"),
    (1, "demo --images {maps} --out {new}"),
    (2, "demo --images {missing} --out {new}"),
    (1, "evaluate {damaged_file} {set}"),
    (1, "inspect {damaged} --out {new}.html"),
    (1, "maps check {damaged}"),
    (1, "maps import {images} {new}"),
    (2, "maps import {missing} {new}"),
    (1, "maps join {set} {missing} {new}"),
    (1, "maps make {damaged} {new} --teacher test_resnet"),
    (1, "maps study {missing} --val {set} --model test_resnet --out {new}"),
    (1, "pack {maps} {new}"),
    (2, "pack {missing} {new}"),
    (1, "predict {missing} {image}"),
    (1, "pseudo make {set} {new} --model {damaged_file}"),
    (1, "replay {damaged}"),
    (1, "reshard {damaged} {new}"),
    (2, "reshard {set} {maps}"),
    (1, "serve {damaged}"),
    (1, "stats {missing}"),
    (1, "subset classes {damaged} --method random --num-classes 2 -o {new}.json"),
    (1, "subset confusion {set} --model {damaged_file} -o {new}.csv"),
    (1, "subset evaluate {texts}"),
    (2, "subset evaluate {missing}"),
    (1, "subset images {damaged} -m 1 -o {new}.json"),
    (1, "subset score {damaged} --model test_resnet -o {new}"),
    (1, "subset study {missing} {set} --val {set} --models test_resnet,test_vit -o {new}"),
    (2, "tags build {missing} -o {new}.jsonl"),
    (2, "tags show dog"),
    (2, "tags study {missing} --fine-tune {set} --val {set} --model test_resnet --out {new}"),
    (2, "tags weigh {missing} -o {new}.jsonl --classes {classes}"),
    (1, "teacher make {set} {new} --teacher {damaged_file}"),
    (1, "train single-label {damaged} --model test_resnet --out {new}"),
    (2, "train single-label {set} --model nonsense --out {new} --global-batch 4"),
    (2, "tree build --classes {missing} -o {new}.json"),
    (1, "tree check {set}/tree.json --classes imagenet-1k"),
    (2, "tree export {set}/tree.json"),
    (1, "tree show {damaged_file}"),
    (2, "tree stats {missing}"),
    (1, "verify {damaged}"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A data set, what it is made of, and the same damaged."""
    folder = tmp_path_factory.mktemp("codes")
    names = (
        "set",
        "damaged",
        "images",
        "maps",
        "classes",
        "texts",
        "curves",
        "damaged_file",
        "run",
        "missing",
    )
    found = {name: folder / name for name in names}
    found["texts"] = folder / "texts.csv"
    found["image"] = found["images"] / whole.CLASSES[0] / "0.jpg"
    found["curves"] = folder / "curves.csv"
    for name in ("set", "damaged"):
        found[name].mkdir()
        for file, data in whole.packed().train.items():
            (found[name] / file).write_bytes(data)
    (found["damaged"] / "manifest.json").write_text("{}")
    found["damaged_file"].write_bytes(b"[")
    for i, name in enumerate(whole.CLASSES):
        (found["images"] / name).mkdir(parents=True)
        (found["images"] / name / "0.jpg").write_bytes(whole.jpeg(i))
    found["maps"].mkdir()
    torch.save(
        torch.stack([torch.linspace(1, 0, 60).reshape(3, 4, 5), torch.arange(60.0).reshape(3, 4, 5)]),
        found["maps"] / "a.pt",
    )
    found["classes"].write_text("\n".join(whole.CLASSES))
    found["texts"].write_text("path,label,title\na.jpg,n01440764,a fish\nb.jpg,n01443537,a fish\n")
    rows = [f"{part},{model},{epoch},0.{epoch}{i}" for part in ("full", "subset")
            for i, model in enumerate("abc") for epoch in (1, 2)]  # fmt: skip
    found["curves"].write_text("\n".join(["set,model,epoch,accuracy", *rows]) + "\n")
    return found


def code_of(line, places, new):
    """A command's exit code; whatever it raises is a bug, but for what argparse does."""
    try:
        return main(shlex.split(line.format(**places, new=new)))
    except SystemExit as error:
        return error.code


def command_of(line):
    two, one = " ".join(line.split()[:2]), line.split()[0]
    return two if two in LEAVES else one


def test_every_command_is_tried():
    assert sorted([*map(command_of, GOOD), *ELSEWHERE]) == LEAVES
    assert sorted({command_of(line) for _, line in BAD} | {"doctor"}) == LEAVES
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name in ELSEWHERE.values() if f"def {name}(" not in tests] == []


def test_a_command_that_did_what_was_asked_ends_with_0_and_prints_json_as_documented(
    places, tmp_path, capsys
):
    for i, line in enumerate(GOOD):  # the first makes the checkpoint of others
        command, option = command_of(line), ""
        if command in documented():
            option = " --json" if command != "bench" else " --json {new}"
        assert code_of(line + option, places, tmp_path / str(i)) == 0, (line, capsys.readouterr().err)
        printed = capsys.readouterr().out
        if option:
            text = printed if command != "bench" else (tmp_path / str(i)).read_text()
            read_json(command, text)
    read_json("summary.json", (places["run"] / "summary.json").read_text())


@pytest.mark.parametrize(("code", "line"), BAD, ids=[line for _, line in BAD])
def test_what_is_wrong_ends_with_its_code_and_is_said_on_standard_error(code, line, places, tmp_path, capsys):
    assert code_of(line, places, tmp_path / "new") == code
    out, err = capsys.readouterr()
    assert re.search(r"softshard|/damaged|imagenet-1k", err + out * line.startswith(("verify", "tree check")))
    assert "Traceback" not in err


def test_interrupted_ends_with_130(places, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("softshard.loaders.cli_order.run_stats", interrupted)
    assert code_of("stats {set}", places, None) == 130
    assert "interrupted. What is finished is kept" in capsys.readouterr().err


def test_interrupted_while_the_commands_are_imported_is_no_other(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("softshard.shards.cli.build_parser", interrupted)
    assert main(["stats", "set"]) == 130
    assert capsys.readouterr().err.startswith("softshard: interrupted. ")


def test_sigterm_ends_a_command_at_once_whatever_it_waits_for():
    """A handler in Python would wait for the end of a call in C (DALI, torch), and for a reader of a full pipe."""
    code = """if True:
        import ctypes
        from softshard.shards import cli

        def run(args):
            print("waits", flush=True)
            ctypes.PyDLL(None).sleep(10_000)  # with the GIL

        cli._run_pack = run
        cli.main(["pack", "photos", "shards"])"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as run:
        try:
            assert first_line(run.stdout) == b"waits\n"
            run.terminate()
            assert run.wait(LONG_S) == -signal.SIGTERM
        finally:
            run.kill()


def test_a_locale_without_utf_8_is_refused(places, tmp_path):
    """By it a class folder in Chinese had another name in the data set, and another key."""
    code = "import sys; from softshard.shards.cli import main; sys.exit(main(sys.argv[1:]))"
    call = [sys.executable, "-c", code, "pack", str(places["images"]), str(tmp_path / "new")]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(call, env=os.environ | locale, timeout=LONG_S, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected names of files in UTF-8, found the locale's encoding 'ascii'" in done.stderr
    assert not (tmp_path / "new").exists()


def test_no_permission_and_no_space_are_a_call_that_cannot_be_done(places, monkeypatch, capsys):
    monkeypatch.setattr(
        "softshard.loaders.cli_order.run_stats", lambda *_: Path("/proc/self/none").read_bytes()
    )
    assert code_of("stats {set}", places, None) == 2
    assert capsys.readouterr().err == "softshard: /proc/self/none: No such file or directory\n"


def run_with(places, new, *, closed="", **streams):
    """`tree build` of one level, which warns, in a process of its own; its exit code."""
    code = "import sys; from softshard.shards.cli import main; sys.exit(main(sys.argv[1:]))"
    call = [sys.executable, "-c", code, "tree", "build", "--classes", places["classes"], "-o", f"{new}.json"]
    shell = ["bash", "-c", f'exec "$@" {closed}', "bash"] if closed else []
    return subprocess.run([*shell, *call], timeout=240, **streams).returncode


@pytest.mark.parametrize("stream", ["gone", "full"])
def test_messages_that_nobody_reads_end_no_run(places, tmp_path, stream):
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        code = run_with(places, tmp_path / "new", stderr=writer if stream == "gone" else full)
    finally:
        os.close(writer)
        os.close(full)
    assert code == 0
    assert json.loads((tmp_path / "new.json").read_text())["names"]


def test_a_message_is_one_call_of_the_systems_so_that_processes_do_not_mix_theirs(places, tmp_path):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        assert run_with(places, tmp_path / "new", stderr=theirs) == 0
        ours.setblocking(False)
        said = ours.recv(1 << 16)
    assert said.startswith(b"softshard: warning: ")
    assert said.endswith(b"\n")


def test_what_ends_without_a_line_is_shown_when_it_is_flushed():
    code = (
        "import os, sys; from softshard.shards.standard_streams import open_streams; open_streams()\n"
        "sys.stderr.write('\\r 10%')\nsys.stderr.write(' 20%'); sys.stderr.flush(); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=240, capture_output=True)
    assert done.stderr == b"\r 10% 20%"


@pytest.mark.parametrize(("shell", "unbuffered"), [("zsh", ""), ("bash", "1")])
def test_a_reader_that_goes_away_is_no_error(shell, unbuffered):
    """Of an output that no buffer holds: Python has none, or it is larger than that of a pipe."""
    code = f"import sys; from softshard.shards.cli import main; sys.exit(main(['completion', '{shell}']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=240,
            stdout=writer,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_closed_streams_end_no_run_and_nothing_is_written_into_its_files(places, tmp_path):
    assert run_with(places, tmp_path / "new", closed="<&- >&- 2>&-") == 0
    assert json.loads((tmp_path / "new.json").read_text())["names"]


def test_a_broken_pipe_that_is_not_the_output_is_an_error(places, monkeypatch, capsys):
    def broken(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", "storage")

    monkeypatch.setattr("softshard.loaders.cli_order.run_stats", broken)
    assert code_of("stats {set}", places, None) == 2
    assert capsys.readouterr().err == "softshard: storage: Broken pipe\n"


def test_the_page_says_the_same():
    page = (Path(__file__).parents[1] / "docs" / "operating.md").read_text("utf-8")
    table = re.findall(r"^\| (\d+(?: \+ n)?) \| ", page.split("Exit codes")[1].split("A traceback")[0], re.M)
    assert json.dumps(table) == '["0", "1", "2", "130", "128 + n"]'
