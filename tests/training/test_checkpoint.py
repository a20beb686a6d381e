"""Checkpoints appear whole, come back equal, and are refused when damaged or of other data."""

import dataclasses
import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch

from softshard.shards import LabelTree
from softshard.shards.errors import DataError
from softshard.training.checkpoint import CHECKPOINT_VERSION, Checkpoint, load_checkpoint, save_checkpoint
from softshard.training.label_space import LabelSpace
from softshard.training.recipes import relabel

TREE = LabelTree.from_table(("cat", "dog"), [("cat", "mammal"), ("dog", "mammal"), ("mammal", "animal")])
CLASSES = TREE.classes
_LEFT_OUT = object()


def make_checkpoint(**changes):
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.randn(3, 2)
    optimizer.step()
    checkpoint = Checkpoint(
        model_name="test_resnet",
        recipe=relabel(),
        model={"weight": parameter.detach()},
        model_ema=None,
        teacher=None,
        scaler=None,
        optimizer=optimizer.state_dict(),
        step=17,
        epoch=2,
        loader={"fingerprint": "f" * 64, "epoch": 2, "samples": [5, 7]},
        class_names=list(CLASSES),
        classes_sha256="a" * 64,
        tree_sha256=TREE.fingerprint,
        tree_json=json.dumps(TREE.to_json()),
        stored_images=None,
        rng=[{"cpu": torch.get_rng_state()}],
        loss_sum=3.5,
        loss_steps=4,
        skipped=0,
        history=[{"epoch": 0, "loss": 1.5, "per_level": [0.5, None]}],
    )
    return dataclasses.replace(checkpoint, **changes)


def test_a_checkpoint_comes_back_equal(tmp_path):
    saved = make_checkpoint()
    save_checkpoint(tmp_path / "checkpoint.pt", saved)
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("model", "optimizer", "rng"):
            assert vars(found)[field.name] == vars(saved)[field.name]
    assert torch.equal(found.model["weight"], saved.model["weight"])
    assert torch.equal(found.rng[0]["cpu"], saved.rng[0]["cpu"])
    torch.testing.assert_close(found.optimizer["state"], saved.optimizer["state"], rtol=0, atol=0)


def test_a_crash_while_saving_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, make_checkpoint(step=1))

    def crash(_fields, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, make_checkpoint(step=2))
    assert load_checkpoint(path).step == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_last_checkpoint_and_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, make_checkpoint(step=1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # stands for the disk's
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*checkpoint\.pt"):
            save_checkpoint(path, make_checkpoint(model={"weight": torch.zeros(10**6)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(path).step == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_went_wrong_is_told_where_the_half_checkpoint_cannot_be_removed_either(tmp_path, monkeypatch):
    def crash(fields, file):
        Path(file.name).unlink()
        Path(file.name).mkdir()  # which is not unlinked
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match=r"No space left on device: .*checkpoint\.pt"):
        save_checkpoint(tmp_path / "checkpoint.pt", make_checkpoint())


@pytest.mark.parametrize("keep", [0, 10, 1000, -100, -1])
def test_a_checkpoint_that_is_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, make_checkpoint())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        DataError, match=rf"{path}: expected a checkpoint, found a file that torch cannot read"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("at", [0, 1, 2000, 3999])
def test_a_changed_byte_of_the_weights_is_noticed(tmp_path, at):
    path, weight = tmp_path / "checkpoint.pt", torch.randn(1000)
    save_checkpoint(path, make_checkpoint(model={"weight": weight}))
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + at] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: .*wrong checksum"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.pt: expected a checkpoint, found no such file"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="torch cannot read"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "found a file without class_names"),
        ([1, 2], "found a file without class_names"),
    ],
)
def test_other_files_of_torch_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(DataError, match=message):
        load_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, f"expected checkpoint version {CHECKPOINT_VERSION}, found 99"),
        # Not "a file without teacher": an older version has other fields.
        ({"version": 3, "teacher": _LEFT_OUT}, f"expected checkpoint version {CHECKPOINT_VERSION}, found 3"),
        ({"recipe": {"name": "relabel", "colour": 1}}, "expected a recipe of this version of softshard"),
        ({"recipe": {**vars(relabel()), "loss": "bce"}}, "loss: expected one of"),
        ({"recipe": {**vars(relabel()), "lr": "0.1"}}, "expected a recipe of this version of softshard"),
        ({"recipe": {**vars(relabel()), "lr": None}}, "expected a recipe of this version of softshard"),
        ({"recipe": {**vars(relabel()), "crop_scale": (0.1,)}}, "expected a recipe of this version"),
        ({"tree_json": "{"}, r"checkpoint\.pt: expected the label tree of a run, found another \(Expecting"),
        ({"tree_json": "[]"}, r"checkpoint\.pt: expected the label tree of a run, found another \(tree: "),
    ],
)
def test_checkpoints_of_another_version_are_refused(tmp_path, change, message):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, make_checkpoint())
    fields = torch.load(path, weights_only=True) | change
    torch.save({name: value for name, value in fields.items() if value is not _LEFT_OUT}, path)
    with pytest.raises(DataError, match=message):
        load_checkpoint(path)


def test_a_data_set_without_a_tree_still_has_the_same_classes():
    make_checkpoint().check_data(Path("checkpoint.pt"), "shards/val", LabelSpace(CLASSES, "a" * 64, None))


def test_another_class_list_and_another_tree_are_refused_with_both_fingerprints_and_what_differs():
    other = LabelTree.from_table(("cat", "gull"), [("cat", "pet"), ("gull", "bird")])
    with pytest.raises(DataError) as error:
        make_checkpoint().check_data(
            Path("checkpoint.pt"), "shards/val", LabelSpace(("cat", "gull"), "c" * 64, other)
        )
    for text in (
        "checkpoint.pt and data set 'shards/val'", f"expected {'a' * 64}, found {'c' * 64}",
        f"expected {TREE.fingerprint}, found {other.fingerprint}",
        "4 classes, not 2; the first that differs is class 1: 'dog', not 'gull'",
        "another parent for 1 of the classes in both, the first of them 'cat': 'mammal', not 'pet'",
    ):  # fmt: skip
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ("dog", "cat", "animal", "mammal"),
            "the same 4 classes in another order; the first .* class 0: 'cat', not 'dog'",
        ),
        (("cat", "dog"), "4 classes, not 2; the first 2 agree, only one of them has 'mammal'"),
        (CLASSES, "both 4 classes of the same names"),
    ],
)
def test_how_class_lists_differ_is_said(names, text):
    with pytest.raises(DataError, match=text):
        make_checkpoint().check_data(Path("checkpoint.pt"), "val", LabelSpace(names, "c" * 64, None))


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        (["run/checkpoint.pt"], "run", "found the folder it is in. Give .*run/checkpoint.pt"),
        (["run/manifest.json"], "run", "found the folder of a data set"),
        (["run/other"], "run", "found a folder without one"),
        (
            ["run/model.safetensors", "run/checkpoint.pt"],
            "run/model.safetensors",
            "found weights alone.*Give .*run/checkpoint.pt",
        ),
        (
            ["model.safetensors"],
            "model.safetensors",
            "found weights alone.*Give the checkpoint of the same run",
        ),
    ],
)
def test_folders_and_exported_weights_are_told_from_checkpoints(files, given, message, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=f"{given}: expected the file checkpoint.pt that softshard train writes, {message}"
    ):
        load_checkpoint(tmp_path / given)
