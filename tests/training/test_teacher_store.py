"""A stored teacher: what a real, tiny one says is in the shards; a student learns from it what the live one teaches."""

import hashlib
import json
import math
from functools import partial

import fsspec
import pytest
import torch
from packed_files import write_again
from tiny_runs import losses, tiny

from softshard.loaders import Augment, Cache, Loader
from softshard.shards import (
    DataError,
    LabelTree,
    Manifest,
    ReshardOptions,
    UsageError,
    read_shard,
    reshard,
    verify,
)
from softshard.shards.cli import main
from softshard.shards.stats import data_set_stats, format_stats
from softshard.shards.teacher_levels import decode_teacher_levels, num_kept
from softshard.training import (
    LevelLayout,
    SemanticKDLoss,
    SemanticSoftmaxLoss,
    semantic_kd,
    semantic_softmax,
    teacher_levels,
)
from softshard.training import teacher_store as teacher_store_module
from softshard.training.checkpoint import load_checkpoint
from softshard.training.label_space import LabelSpace
from softshard.training.models import create_model
from softshard.training.teacher import CheckpointTeacher
from softshard.training.teacher_store import store_teacher
from softshard.training.train import train

WHOLE = Augment(size=32, scale=None, flip=False)


tiny = partial(tiny, epochs=2)


def run(recipe, dataset, out, **options):
    options = {"model": "test_resnet", "log_steps": 1, "log": lambda line: None, **options}
    return train(recipe, str(dataset), out=out, **options)


def values(folder, suffix="kd"):
    return {
        sample.key: sample.parts[suffix]
        for path in sorted(folder.glob("*.tar"))
        for sample in read_shard(path)
    }


@pytest.fixture(scope="module")
def checkpoint(shards, tmp_path_factory):
    """Of a model that knows the colours, but not for certain."""
    recipe = tiny(semantic_softmax(), epochs=3, lr=1e-2)
    return run(recipe, shards / "train", tmp_path_factory.mktemp("teacher")).checkpoint


@pytest.fixture(scope="module")
def certain(shards, tmp_path_factory):
    """Of a model that leaves next to nothing to other classes."""
    recipe = tiny(semantic_softmax(), epochs=10, lr=2e-2, smoothing=0.0)
    return run(recipe, shards / "train", tmp_path_factory.mktemp("certain")).checkpoint


@pytest.fixture(scope="module")
def stored(shards, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "train"
    return folder, store_teacher(shards / "train", folder, checkpoint, batch_size=8, num_threads=1)


def test_the_shards_hold_what_the_teacher_says_of_the_whole_images(shards, checkpoint, stored):
    folder, _ = stored
    kd = values(folder)
    with Loader(shards / "train", batch_size=48, augment=WHOLE, dtype="uint8", last_batch="pad") as loader:
        batch, tree = next(iter(loader)), loader.tree
        labels = LabelSpace.of_loader(loader)
    recipe = tiny(semantic_kd())
    live = CheckpointTeacher(checkpoint, recipe, labels=labels, dataset="")
    ids, probabilities = teacher_levels(live(batch.images.float() / 255), LevelLayout(tree))
    found_ids, found = decode_teacher_levels([kd[key] for key in batch.keys], tree.level_sizes)
    assert (torch.from_numpy(found_ids) == ids).all()
    # Half a unit of float16, and sums of float32 in another order, as the batch is another.
    torch.testing.assert_close(torch.from_numpy(found), probabilities, rtol=2**-10, atol=1e-6)


def test_everything_else_keeps_its_bytes_and_the_result_says_who_spoke(shards, checkpoint, stored, tmp_path):
    folder, manifest = stored
    for suffix in Manifest.load(shards / "train").components:
        assert values(folder, suffix) == values(shards / "train", suffix)
    assert verify(folder, decode=True).problems == []
    assert manifest == Manifest.load(folder)
    assert manifest.components[-1] == "kd"
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (manifest.teacher.model, manifest.teacher.checkpoint_sha256) == ("test_resnet", sha256)
    assert manifest.teacher.levels == 2
    assert (manifest.teacher.how["size"], manifest.teacher.how["precision"]) == (32, "float32")
    stats = data_set_stats(folder)
    assert stats["teacher"] == {"kept_per_level": [1, 1], "origin": manifest.teacher.to_json()}
    line = f"stored teacher  test_resnet of checkpoint {sha256[:12]}, best 1 + 1 classes of the levels"
    assert line in format_stats(stats)
    page = tmp_path / "stats.html"
    assert main(["stats", str(folder), "--html", str(page)]) == 0
    assert "Stored teacher: test_resnet; of each level its 1 + 1 best classes" in page.read_text()


def test_a_data_set_behind_a_url_gives_the_same_bytes(shards, checkpoint, stored, tmp_path):
    folder, manifest = stored
    files = fsspec.filesystem("memory")
    files.put(str(shards / "train"), "/teacher-source/train", recursive=True)
    try:
        found = store_teacher(
            "memory://teacher-source/train",
            tmp_path / "train",
            checkpoint,
            batch_size=8,
            num_threads=1,
            cache=Cache(folder=tmp_path / "cache"),
        )
    finally:
        files.rm("/teacher-source", recursive=True)
    assert found == manifest
    for shard in manifest.shards:
        assert (tmp_path / "train" / shard.name).read_bytes() == (folder / shard.name).read_bytes()


def test_a_damaged_value_is_found_by_verify(stored, tmp_path):
    folder, manifest = stored

    def damaged(sample):
        value = sample.parts["kd"]
        return {**sample.parts, "kd": value[:-1] + bytes([value[-1] ^ 1])}

    write_again(folder, tmp_path, damaged)
    problems = verify(tmp_path).problems
    assert len(problems) == manifest.num_samples
    assert all("component 'kd': expected checksum" in problem for problem in problems)


def most_apart(said, tree):
    """float32 [N]: how far the distillation's loss of a sample may lie from the live teacher's; its logits [N, C].

    |d^2 - d'^2| <= |T - T'| (d + d'), and both distances are at most sqrt(2). T' differs from T by the remainder r of a
    level (spread evenly, where T has it somewhere: at most 2 r) and by float16's rounding, 2^-11 of each of K kept
    probabilities, which the remainder makes up for: K 2^-10 in all. The confidence P <= 1 is off by K 2^-11 more, times
    d^2 <= 2.
    """
    bound = torch.zeros(len(said))
    for classes, kept in zip(tree.level_classes, num_kept(tree.level_sizes), strict=True):
        probabilities = said[:, torch.tensor(classes)].softmax(dim=1)
        rest = 1 - probabilities.topk(kept, dim=1).values.sum(dim=1)
        # Of two classes the second gets all that the first leaves.
        cut = torch.zeros_like(rest) if len(classes) == kept + 1 else 2 * rest
        bound += 2 * math.sqrt(2) * (cut + kept * 2**-10) + kept * 2**-10
    return bound


@pytest.mark.parametrize("rule", ["paper", "code"])
def test_the_loss_is_the_live_teachers_within_what_float16_and_the_cut_allow(rule, certain, shards, tmp_path):
    """A teacher that leaves little to other classes, so that the bound means something."""
    store_teacher(shards / "train", tmp_path, certain, num_threads=1)
    with Loader(tmp_path, batch_size=8, augment=WHOLE, dtype="uint8", teacher=True, seed=3) as loader:
        batch, tree = next(iter(loader)), loader.tree
        labels = LabelSpace.of_loader(loader)
    said = CheckpointTeacher(certain, labels=labels, dataset="")(batch.images.float() / 255)
    student = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    loss = SemanticKDLoss(tree, rule)
    live = loss(student, said, batch.levels)
    difference = (loss(student, batch.teacher, batch.levels) - live).abs()
    bound = most_apart(said, tree)
    bound = bound.sum() if rule == "code" else bound.mean()
    assert 0 < difference <= bound
    assert bound < 0.2 * live


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"level_order": True}, {"distill": "code"}])
def test_the_first_step_from_the_shards_is_that_of_its_formula(changes, stored, checkpoint, shards, tmp_path):
    folder, manifest = stored
    recipe = tiny(semantic_kd(), distill_weight=0.5, epochs=1, augment="none", **changes)
    lines = []
    result = run(recipe, folder, tmp_path / "run", model="test_convnext", seed=3, log=lines.append)
    torch.manual_seed(3)
    student = create_model("test_convnext", 6, 32)
    with Loader(
        folder, batch_size=8, seed=3, augment=recipe.train_augment(), dtype="uint8", teacher=True
    ) as loader:
        batch, tree = next(iter(loader)), loader.tree
    with torch.no_grad():
        logits = student.train()(batch.images.float() / 255)
        distance = SemanticKDLoss(tree, recipe.distill)(logits, batch.teacher, batch.levels)
        expected = SemanticSoftmaxLoss(tree)(logits, batch.levels) + 0.5 * distance
    assert losses(tmp_path / "run")[0] == pytest.approx(expected.item(), rel=1e-5)
    assert distance > 0
    sha256 = manifest.teacher.checkpoint_sha256
    assert f"teacher: stored in the shards, test_resnet, checkpoint {sha256[:12]}" in "\n".join(lines)
    facts = {"model": "test_resnet", "sha256": sha256, "checkpoint": None, "stored": True}
    assert load_checkpoint(result.checkpoint).teacher == facts
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["teacher"] == facts
    with pytest.raises(
        UsageError, match=r"teacher: a stored one with SHA-256 (\w+), not a live one with SHA-256 \1"
    ):
        run(recipe, folder, tmp_path / "run", model="test_convnext", seed=3, resume=True, teacher=checkpoint)


def test_a_live_teacher_is_asked_even_where_one_is_stored(stored, checkpoint, shards, tmp_path):
    recipe = tiny(semantic_kd(), epochs=1)
    run(recipe, stored[0], tmp_path / "a", teacher=checkpoint)
    run(recipe, shards / "train", tmp_path / "b", teacher=checkpoint)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_run_that_was_interrupted_continues_and_two_processes_make_the_same(
    forks, shards, checkpoint, stored, tmp_path, monkeypatch
):
    plain, encoded = teacher_store_module.encode_teacher_levels, []

    def encode(*args):
        encoded.append(1)
        if len(encoded) == 45:  # in the third of three shards
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(teacher_store_module, "encode_teacher_levels", encode)
    with pytest.raises(KeyboardInterrupt):
        store_teacher(shards / "train", tmp_path / "out", checkpoint, batch_size=8, num_threads=1)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(DataError, match="expected a data set, found no manifest"):
        Manifest.load(tmp_path / "out")
    encoded[:] = [1] * 100
    again = store_teacher(shards / "train", tmp_path / "out", checkpoint, batch_size=8, num_threads=1)
    assert (again, len(encoded)) == (stored[1], 100 + 16)
    with pytest.raises(
        UsageError, match=r"of another run \(kd\.batch_size differ\)\. Write into a new folder"
    ):
        store_teacher(shards / "train", tmp_path / "out", checkpoint, batch_size=4)

    words = [
        "teacher",
        "make",
        shards / "train",
        tmp_path / "two",
        "--teacher",
        checkpoint,
        "--batch-size",
        8,
    ]
    done = forks.run(*words, "--device", "cpu", "--threads", 1, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("48 samples with the levels of test_resnet") == 1
    assert Manifest.load(tmp_path / "two") == stored[1]


def test_a_teacher_of_another_tree_or_class_list_is_refused_with_both_named(shards, checkpoint, tmp_path):
    source = shards / "train"
    tree = LabelTree.load(source / "tree.json")
    other = LabelTree.from_table(
        tree.classes[:4], [("cat", "bird"), ("dog", "mammal"), ("crow", "bird"), ("gull", "bird")]
    )
    if other.classes != tree.classes:
        other = LabelTree.from_table(
            tree.classes[:4], [("cat", "mammal"), ("dog", "bird"), ("crow", "bird"), ("gull", "bird")]
        )
    assert other.classes == tree.classes
    reshard([source], tmp_path / "other", ReshardOptions(tree=other, drop=("lmap",)))
    with pytest.raises(
        DataError, match=f"teacher .*: label tree: expected {tree.fingerprint}, found {other.fingerprint}"
    ):
        store_teacher(tmp_path / "other", tmp_path / "out", checkpoint)
    assert not (tmp_path / "out").exists()
    reshard([source], tmp_path / "flat", ReshardOptions(drop=("hier.npy", "lmap")))
    with pytest.raises(
        UsageError, match=r"expected a label tree with one path to every class, .* found none"
    ):
        store_teacher(tmp_path / "flat", tmp_path / "out", checkpoint)


def test_labels_over_another_tree_cannot_be_learnt_with_the_stored_teacher(stored, tmp_path):
    folder, manifest = stored
    with pytest.raises(
        UsageError,
        match=rf"expected labels over the tree {manifest.tree_sha256[:12]}, .*softshard train --teacher",
    ):
        run(tiny(semantic_kd()), folder, tmp_path, labels=["cat", "dog"])


def test_a_stored_teacher_must_know_every_level_that_the_student_learns(shards, stored, tmp_path):
    recipe = tiny(semantic_softmax(), epochs=1, levels=1)
    one_level = run(recipe, shards / "train", tmp_path / "t").checkpoint
    made = store_teacher(shards / "train", tmp_path / "stored", one_level, num_threads=1)
    assert made.teacher.levels == 1
    with pytest.raises(
        UsageError,
        match="stored teacher: expected one trained on all levels, as the student is, found one trained on 1",
    ):
        run(tiny(semantic_kd()), tmp_path / "stored", tmp_path / "s")
    assert run(tiny(semantic_kd(), levels=1, epochs=1), tmp_path / "stored", tmp_path / "s").steps == 6


def test_reshard_keeps_who_spoke_and_refuses_to_merge_two_teachers(shards, stored, certain, tmp_path):
    folder, manifest = stored
    assert reshard([folder], tmp_path / "whole", ReshardOptions(shard_samples=7)).teacher == manifest.teacher
    assert reshard([folder], tmp_path / "none", ReshardOptions(drop=("kd",))).teacher is None
    store_teacher(shards / "train", tmp_path / "certain", certain, num_threads=1)
    with pytest.raises(DataError, match=r"expected the stored teacher .*checkpoint_sha256"):
        reshard([folder, tmp_path / "certain"], tmp_path / "both", ReshardOptions())


def test_a_precision_that_there_is_not_is_refused_before_anything_is_written(shards, checkpoint, tmp_path):
    with pytest.raises(UsageError, match="amp: expected one of bfloat16, float16, found 'fp16'"):
        store_teacher(shards / "train", tmp_path / "stored", checkpoint, amp="fp16")
    assert not (tmp_path / "stored").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"levels": 0}, "expected the stored teacher's model, checkpoint and levels"),
        ({"how": None}, "expected the stored teacher's model, checkpoint and levels"),
    ],
)
def test_a_manifest_with_a_damaged_teacher_is_refused(stored, change, text):
    content = stored[1].to_json()
    with pytest.raises(DataError, match=text):
        Manifest.from_json({**content, "teacher": {**content["teacher"], **change}})
    without = {**content, "components": [suffix for suffix in content["components"] if suffix != "kd"]}
    with pytest.raises(DataError, match="expected 'teacher' described only where samples have 'kd'"):
        Manifest.from_json(without)


def test_the_commands_make_and_learn(shards, checkpoint, tmp_path, capsys):
    source, out = str(shards / "train"), str(tmp_path / "stored")
    assert main(["teacher", "make", source, out, "--teacher", str(checkpoint), "--device", "cpu"]) == 0
    assert f"Run: softshard train semantic-kd {out}" in capsys.readouterr().out
    command = ["train", "semantic-kd", out, "--model", "test_resnet", "--out", str(tmp_path / "run")]
    small = ["--epochs", "1", "--global-batch", "8", "--image-size", "32", "--device", "cpu"]
    assert main([*command, *small]) == 0
    assert "teacher: stored in the shards, test_resnet" in capsys.readouterr().err
    assert main(["teacher", "make", source, out, "--teacher", str(tmp_path / "no.pt")]) == 1
    assert "no.pt: expected a checkpoint, found no such file" in capsys.readouterr().err
