"""The tutorials, block by block in an empty folder, as a reader types them but for sizes and places."""

import contextlib
import csv
import io
import os
import re
import select
import sys
import sysconfig
import types
from pathlib import Path

import pytest
import torch
from waiting import LONG_S

from page_blocks import code_blocks, put_in_place, run_bash, run_python, with_scripts
from servers.swift import ACCESS_KEY, REGION, SECRET_KEY, free_ports
from softshard.shards import Manifest, read_shard
from softshard.shards.cli import main

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"

pytestmark = pytest.mark.usefixtures("one_thread")


def run_tutorial(name, texts, folder, monkeypatch):
    """Run a tutorial's blocks in order; what a shell exports, later blocks have.

    Args:
        name: of the page.
        texts: text -> (what stands in its place, how often), over all blocks of the page.
        folder: where its reader stands.
        monkeypatch: undoes the rest.

    Returns:
        What the shell said to each of its blocks, and the namespace of the Python blocks.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SOFTSHARD_CACHE", str(folder / "cache"))
    blocks = code_blocks((TUTORIALS / f"{name}.md").read_text(), "bash", "python")
    page = put_in_place("\0".join(code for _, code in blocks), texts).split("\0")
    module = types.ModuleType("tutorial")
    monkeypatch.setitem(sys.modules, "tutorial", module)
    said = []
    for (language, _), code in zip(blocks, page, strict=True):
        if language == "python":
            run_python(code, f"{name}.md", module)
        elif (lines := commands(code)) is not None:
            said.append("".join(map(in_process, lines)))
        else:
            environment = with_scripts(dict(os.environ), Path(sys.executable).parent, scripts(folder))
            text, left = run_bash(code, folder, environment)
            said.append(text)
            for variable in left.keys() - environment.keys() - {"_", "SHLVL", "PWD", "OLDPWD"}:
                monkeypatch.setenv(variable, left[variable])
    return said, vars(module)


def commands(code):
    """The words of the commands of a block that is nothing but softshard's; None of any other."""
    lines = [line.split() for line in code.replace("\\\n", " ").splitlines()]
    is_plain = all(line[:1] == ["softshard"] for line in lines) and not re.search(r"[#$&|<>'\"]", code)
    return lines if is_plain else None


def in_process(words):
    """What a command says: most of a process of its own would be importing torch."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        assert main(words[1:]) == 0, out.getvalue()
    return out.getvalue()


def scripts(folder):
    """A folder with torchrun, which lies beside this Python only where torch was installed with it."""
    path = folder / ".scripts"
    if not (Path(sysconfig.get_path("scripts")) / "torchrun").exists() and not path.exists():
        path.mkdir()
        (path / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
        (path / "torchrun").chmod(0o755)
    return path


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def epochs_of(folder):
    return [int(row["epoch"]) for row in rows(folder / "epochs.csv")]


def test_every_tutorial_is_run():
    tests = {name.removeprefix("test_tutorial_") for name in globals() if name.startswith("test_tutorial_")}
    assert {path.stem for path in TUTORIALS.glob("*.md")} == tests


@pytest.mark.parametrize("job", ["sleep 600", "(sleep 600; echo)"], ids=["command", "list of commands"])
@pytest.mark.parametrize("last", ["true", "false"])
def test_a_block_ends_what_it_started(job, last, tmp_path):
    os.mkfifo(tmp_path / "held")  # which ends when nothing that the job started holds it open any more
    with open(os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK), "rb") as held:
        code = f"{{ echo; {job}; }} > held &\nhead -c 1 held\n{last}"
        with contextlib.nullcontext() if last == "true" else pytest.raises(AssertionError, match="sleep 600"):
            run_bash(code, tmp_path, dict(os.environ))
        assert select.select([held], [], [], LONG_S)[0]
        assert held.read(1) == b""


def test_tutorial_image_folder(photos, tmp_path, monkeypatch, capsys):
    texts = {
        "--val-per-class 50": ("--val-per-class 4", 1),
        "resnet18": ("test_resnet", 2),
        "batch_size=64": ("batch_size=8", 2),
        "size=224": ("size=32", 1),
        "evaluation(224)": ("evaluation(32)", 1),
        "(train_set.epoch, 10)": ("(train_set.epoch, 2)", 1),
        "--preset small": ("--preset small --epochs 1 --global-batch 8 --image-size 32", 1),
    }
    said, left = run_tutorial("image_folder", texts, tmp_path, monkeypatch)
    assert f"epoch 1: {left['num_right']} of 12 right" in capsys.readouterr().out
    assert torch.load("checkpoint.pt")["loader"]["epoch"] == 2
    assert epochs_of(tmp_path / "runs" / "first") == [0]
    assert "tabby" in said[-1]
    left["train_set"].close()
    left["val_set"].close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # no manifest: the page says so
def test_tutorial_webdataset(old_webdataset, tmp_path, monkeypatch):
    texts = {
        "resnet18": ("test_resnet", 1),
        "batch_size=32": ("batch_size=8", 1),
        "size=224": ("size=32", 1),
    }
    _, left = run_tutorial("webdataset", texts, tmp_path, monkeypatch)
    assert left["loader"].num_samples == 36
    manifest = Manifest.load(tmp_path / "packed" / "train")
    assert manifest.num_samples == 36
    assert list(manifest.class_names) == ["astronaut", "tabby", "coffee_cup"]
    left["loader"].close()


def test_tutorial_imagenet_21k_p(fall11_whole, tmp_path, monkeypatch, capsys):
    texts = {
        "--preset imagenet-21k-p": ("--preset imagenet-21k-p --min-images 4 --val-per-class 4", 2),
        "--init-from resnet50.a1_in1k": ("--preset small --epochs 1 --global-batch 8 --image-size 32", 1),
        "resnet50": ("test_resnet", 2),
        "batch_size=64": ("batch_size=8", 1),
    }
    _, left = run_tutorial("imagenet_21k_p", texts, tmp_path, monkeypatch)
    manifest = Manifest.load(tmp_path / "in21k" / "train")
    assert manifest.num_samples == 24
    assert left["loader"].num_classes == 11_221
    assert len(left["loader"].tree.level_sizes) == 12
    sample = next(iter(read_shard(tmp_path / "in21k" / "train" / manifest.shards[0].name)))
    assert "hier.npy" in sample.parts
    assert epochs_of(tmp_path / "runs" / "r50") == [0]
    assert "semantic_accuracy" in capsys.readouterr().out
    left["loader"].close()


def test_tutorial_relabel(photos, tmp_path, monkeypatch):
    texts = {
        "--val-per-class 50": ("--val-per-class 4", 1),
        "--size 256": ("--size 64", 2),
        "resnet50": ("test_resnet", 3),
        "resnet18": ("test_resnet", 2),
        "--preset small": ("--preset small --epochs 1 --global-batch 8 --image-size 64", 2),
        "batch_size=64": ("batch_size=8", 1),
        "size=224": ("size=32", 1),
    }
    said, left = run_tutorial("relabel", texts, tmp_path, monkeypatch)
    manifest = Manifest.load(tmp_path / "mapped")
    assert manifest.label_maps is not None
    assert manifest.label_maps.num_classes == 3
    assert "as stored" in said[1]
    assert epochs_of(tmp_path / "runs" / "student") == [0]
    assert left["batch"].targets.sum(1).allclose(torch.ones(8))
    left["loader"].close()


def test_tutorial_object_storage(photos, tmp_path, monkeypatch, capsys, s3_session, s3_bucket):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)  # the page sets them
    texts = {
        "https://s3.example.com": (s3_session.endpoint, 1),
        "my-key": (ACCESS_KEY, 1),
        "my-secret": (SECRET_KEY, 1),
        "us-east-1": (REGION, 1),
        "s3://my-bucket": (s3_bucket, 4),
        "--val-per-class 50": ("--val-per-class 4", 1),
        "batch_size=64": ("batch_size=8", 1),
    }
    said, left = run_tutorial("object_storage", texts, tmp_path, monkeypatch)
    assert left["loader"].fetch_stats().shards_fetched == 1  # for both epochs
    assert "FetchStats" in capsys.readouterr().out
    assert "24" in said[1]


def test_tutorial_several_nodes(photos, tmp_path, monkeypatch, capsys):
    (port,) = free_ports(1)
    texts = {
        "--val-per-class 50": ("--val-per-class 4", 1),
        "--nproc-per-node 8": ("--nproc-per-node 1", 2),
        "node0": ("127.0.0.1", 2),
        "29500": (str(port), 2),
        "resnet18": ("test_resnet", 3),
        "--resume --epochs 25": ("--resume --epochs 2", 1),
        "--preset small": ("--preset small --epochs 1 --global-batch 8 --image-size 32", 3),
        "batch_size=32": ("batch_size=8", 1),
    }
    said, left = run_tutorial("several_nodes", texts, tmp_path, monkeypatch)
    run = tmp_path / "runs" / "nodes"
    assert epochs_of(run) == [0, 1]
    assert "global batch 8 (4 on each of 2 processes)" in said[1]
    assert "global batch 8 (8 on each of 1 processes)" in said[2]
    assert "3 steps of 8 samples" in capsys.readouterr().out
    left["loader"].close()
