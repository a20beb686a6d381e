"""The recipes over a label tree: multi-label, ASL, image balance, distillation, heads in level order; real tiny runs."""

import dataclasses
import hashlib
import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
from tiny_runs import losses, run, tiny

from softshard.loaders import Loader
from softshard.shards import ImageRecipe, LabelTree, PackOptions, pack
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.training import (
    SemanticKDLoss,
    SemanticSoftmaxLoss,
    multi_label_asl,
    multi_label_bce,
    semantic_kd,
    semantic_softmax,
)
from softshard.training.checkpoint import load_checkpoint
from softshard.training.evaluate import evaluate
from softshard.training.label_space import LabelSpace
from softshard.training.models import create_model
from softshard.training.objective import count_images, create_loss
from softshard.training.predict import Predictor
from softshard.training.start import load_start
from softshard.training.teacher import CheckpointTeacher

tiny = partial(tiny, epochs=2)
NO_BATCH_NORM = "test_convnext"


@pytest.fixture(scope="module")
def teacher(shards, tmp_path_factory):
    """The checkpoint of a model that knows the colours."""
    return run(
        tiny(semantic_softmax(), epochs=6, lr=1e-2), shards, tmp_path_factory.mktemp("teacher")
    ).checkpoint


@pytest.mark.parametrize("recipe", [multi_label_bce, multi_label_asl])
def test_multi_label_models_learn_the_colours_and_are_read_by_their_sigmoids(recipe, shards, tmp_path):
    result = run(tiny(recipe(), epochs=6, lr=1e-2), shards, tmp_path, val=str(shards / "val"))
    assert result.history[-1]["semantic_accuracy"] > 0.9
    assert result.history[-1]["leaf_top1"] > 0.8
    right = 0
    for prediction in Predictor(result.checkpoint, top=4).data_set(str(shards / "val")):
        label = prediction.image.split("_")[0]
        parent = "mammal" if label in ("cat", "dog") else "bird"
        right += prediction.path[0].name == parent
        # Each by itself: the shares of a level need not add up to 1.
        assert sum(guess.probability for guess in prediction.best[1]) != pytest.approx(1, abs=1e-6)
        assert all(guess.probability >= 0.5 for guess in prediction.path[1:])
    assert right >= 11


def test_distances_are_evaluated_in_edges_and_choices_beside_all_levels(teacher, shards, capsys):
    numbers = evaluate(teacher, str(shards / "val"))
    wrong = 1 - numbers["leaf_top1"]
    # Two leaves are two edges apart, or four.
    assert 2 * wrong <= numbers["leaf_tree_distance"] <= 4 * wrong + 1e-9
    assert {"tree_distance", "semantic_choice", "semantic_chance", "semantic_majority"} <= numbers.keys()
    assert numbers["semantic_chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert main(["evaluate", str(teacher), str(shards / "val"), "--device", "cpu"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["tree_distance"].endswith(f" {numbers['tree_distance']:.3f} edges")
    assert lines["semantic_chance"].endswith(" 37.50%")
    assert main(["evaluate", str(teacher), str(shards / "val"), "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["leaf_tree_distance"] == numbers["leaf_tree_distance"]


@pytest.mark.parametrize("recipe", [semantic_softmax, multi_label_bce, multi_label_asl])
def test_a_head_in_level_order_learns_the_same_and_is_nowhere_to_be_seen(recipe, shards, tmp_path):
    results, models = {}, {}
    for level_order in (False, True):
        lines = []
        changed = tiny(recipe(), level_order=level_order, ema_decay=0.9, optimizer="momentum", lr=5e-3)
        results[level_order] = run(
            changed, shards, tmp_path / str(level_order), val=str(shards / "val"), log=lines.append
        )
        assert ("head in level order" in lines[0]) == level_order
        models[level_order] = timm.create_model(
            "test_resnet", num_classes=6, checkpoint_path=results[level_order].weights
        )
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)
    plain, ordered = (models[key].state_dict() for key in (False, True))
    for name, weights in plain.items():
        torch.testing.assert_close(ordered[name], weights, rtol=1e-3, atol=1e-4)
    # The rows are told apart: in level order they would not be close.
    assert not torch.allclose(plain["fc.weight"][[4, 5, 0, 1, 2, 3]], plain["fc.weight"], atol=1e-2)
    last = results[True].history[-1]
    for name, value in results[False].history[-1].items():
        if isinstance(value, float):
            assert last[name] == pytest.approx(value, abs=1e-3), name
    # Whoever reads the checkpoint finds class order: evaluate, predict, --init-from.
    checkpoint = results[True].checkpoint
    assert load_checkpoint(checkpoint).recipe.level_order
    numbers = evaluate(checkpoint, str(shards / "val"))
    assert {name: numbers[name] for name in last if name in numbers} == {
        name: value for name, value in last.items() if name in numbers
    }
    guesses = [
        [prediction.path for prediction in Predictor(results[key].checkpoint).data_set(str(shards / "val"))]
        for key in (False, True)
    ]
    assert [[g.index for g in path] for path in guesses[0]] == [
        [g.index for g in path] for path in guesses[1]
    ]
    with Loader(shards / "train", batch_size=8) as loader:
        labels = LabelSpace.of(loader.manifest, loader.tree)
    started = create_model("test_resnet", 6, 32)
    load_start(started, "test_resnet", checkpoint, image_size=32, labels=labels, dataset="")
    assert torch.equal(started.state_dict()["fc.weight"], load_checkpoint(checkpoint).best_model["fc.weight"])


def test_a_run_with_its_head_in_level_order_continues_bit_for_bit(shards, tmp_path):
    recipe = tiny(semantic_softmax(), level_order=True, ema_decay=0.9, schedule="constant", warmup=0.0)
    whole = run(recipe, shards, tmp_path / "whole")
    run(dataclasses.replace(recipe, epochs=1), shards, tmp_path / "parts")
    run(recipe, shards, tmp_path / "parts", resume=True)
    expected, found = load_checkpoint(whole.checkpoint), load_checkpoint(tmp_path / "parts" / "checkpoint.pt")
    for name in expected.model:
        assert torch.equal(found.model[name], expected.model[name]), name
        assert torch.equal(found.model_ema[name], expected.model_ema[name]), name
    with pytest.raises(UsageError, match="level_order: True, not False"):
        run(dataclasses.replace(recipe, level_order=False), shards, tmp_path / "parts", resume=True)


def test_images_are_counted_in_the_data_set_and_weigh_the_levels(tmp_path):
    """Nine of twelve labels are on level 0, so that W_1 = 12 / 3."""
    import cv2

    rows = []
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels)
        rows.append(f"{i}.png,{'cat' if i < 3 else 'animal'}")
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    tree = LabelTree.from_table(("cat", "dog"), [("cat", "animal"), ("dog", "animal")])
    options = PackOptions(image=ImageRecipe(size=32))
    pack(tmp_path / "list.csv", tmp_path / "shards", options, tree=tree, workers=1)
    recipe = tiny(semantic_softmax(), balance="images", epochs=1, global_batch=4)
    with Loader(tmp_path / "shards" / "train", batch_size=4) as loader:
        counts = count_images(recipe, loader)
        assert counts.tolist() == [3, 0, 9]
        assert create_loss(recipe, tree, counts).level_weights == (1.0, 4.0)
        assert count_images(tiny(semantic_softmax()), loader) is None
    assert run(recipe, tmp_path / "shards", tmp_path / "run").steps == 3


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"level_order": True}])
def test_the_first_step_of_a_distillation_is_that_of_its_formula(rule, changes, teacher, shards, tmp_path):
    recipe = tiny(semantic_kd(), distill=rule, distill_weight=0.5, epochs=1, **changes)
    result = run(recipe, shards, tmp_path, model=NO_BATCH_NORM, teacher=teacher, seed=3)
    torch.manual_seed(3)
    student = create_model(NO_BATCH_NORM, 6, 32)
    saved = load_checkpoint(teacher)
    knows = timm.create_model("test_resnet", num_classes=6).eval()
    knows.load_state_dict(saved.model)
    augment = recipe.train_augment()  # RandAugment and all: both see the same pixels
    with Loader(shards / "train", batch_size=8, seed=3, augment=augment, dtype="uint8") as loader:
        batch = next(iter(loader))
    images = batch.images.float() / 255
    with torch.no_grad():
        logits = student.train()(images)
        expected = SemanticSoftmaxLoss(saved.tree)(logits, batch.levels)
        expected = expected + 0.5 * SemanticKDLoss(saved.tree, rule)(logits, knows(images), batch.levels)
    assert losses(tmp_path)[0] == pytest.approx(expected.item(), rel=1e-4)
    # The teacher stays where it was: in no state of the student's.
    assert load_checkpoint(result.checkpoint).model.keys() == student.state_dict().keys()
    facts = {"model": "test_resnet", "checkpoint": str(teacher), "stored": False}
    facts["sha256"] = hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert json.loads((tmp_path / "summary.json").read_text())["teacher"] == facts
    assert load_checkpoint(result.checkpoint).teacher == facts


def test_a_teacher_sees_its_own_size_and_scale_and_learns_nothing(shards, tmp_path):
    recipe = tiny(semantic_softmax(), epochs=1, normalise=True, image_size=40)
    checkpoint = run(recipe, shards, tmp_path).checkpoint
    with Loader(shards / "train", batch_size=8) as loader:
        labels = LabelSpace.of(loader.manifest, loader.tree)
    plain, normalised = (
        CheckpointTeacher(checkpoint, tiny(semantic_kd(), normalise=normalise), labels=labels, dataset="")
        for normalise in (False, True)
    )
    images = torch.rand(4, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    same = (images - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(plain(images), normalised(same), atol=1e-5)
    larger = torch.nn.functional.interpolate(same, (40, 40), mode="bilinear", antialias=True)
    assert torch.allclose(normalised(larger), normalised(same), atol=1e-5)
    assert not plain(images.requires_grad_()).requires_grad


def test_a_distillation_continues_with_its_own_teacher_only(teacher, shards, tmp_path):
    recipe = tiny(semantic_kd(), schedule="constant", warmup=0.0)
    whole = run(recipe, shards, tmp_path / "whole", teacher=teacher)
    run(dataclasses.replace(recipe, epochs=1), shards, tmp_path / "parts", teacher=teacher)
    with pytest.raises(UsageError, match=r"teacher: a live one with SHA-256 .*, not a live one with "):
        run(recipe, shards, tmp_path / "parts", resume=True, teacher=whole.checkpoint)
    run(recipe, shards, tmp_path / "parts", resume=True, teacher=teacher)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_teacher_of_another_label_space_is_refused(teacher, shards):
    with Loader(shards / "train", batch_size=8) as loader:
        names, tree = loader.manifest.class_names, loader.tree
    turned = LabelTree.from_table(
        ("cat", "dog", "crow", "gull"),
        [("cat", "bird"), ("dog", "mammal"), ("crow", "bird"), ("gull", "bird")],
    )
    recipe = tiny(semantic_kd())
    saved = load_checkpoint(teacher)
    with pytest.raises(
        DataError, match=r"teacher .* do not belong together: class list: expected .*, found ffff"
    ):
        CheckpointTeacher(teacher, recipe, labels=LabelSpace(names[::-1], "f" * 64, tree), dataset="set")
    with pytest.raises(DataError, match=r"teacher .* label tree: expected .*another parent for 1"):
        CheckpointTeacher(
            teacher, recipe, labels=LabelSpace(names, saved.classes_sha256, turned), dataset="set"
        )


def test_a_teacher_must_know_every_level_that_the_student_learns(shards, tmp_path):
    checkpoint = run(tiny(semantic_softmax(), epochs=1, levels=1), shards, tmp_path / "t").checkpoint
    with pytest.raises(
        UsageError, match="expected one trained on all levels, as the student is, found one trained on 1"
    ):
        run(tiny(semantic_kd()), shards, tmp_path / "s", teacher=checkpoint)
    assert run(tiny(semantic_kd(), levels=1), shards, tmp_path / "s", teacher=checkpoint).steps == 12


def test_distilling_needs_a_teacher_and_nothing_else_takes_one(teacher, shards, tmp_path, capsys):
    with pytest.raises(
        UsageError,
        match=r"expected a stored teacher .* found components .*softshard teacher make .* train --teacher CHECKPOINT",
    ):
        run(tiny(semantic_kd()), shards, tmp_path)
    with pytest.raises(UsageError, match="expected no teacher, since it does not distil"):
        run(tiny(semantic_softmax()), shards, tmp_path, teacher=teacher)
    command = [
        "train",
        "semantic-kd",
        str(shards / "train"),
        "--model",
        "test_resnet",
        "--out",
        str(tmp_path),
    ]
    small = ["--epochs", "1", "--global-batch", "8", "--image-size", "32", "--device", "cpu"]
    assert main([*command, *small, "--teacher", str(teacher), "--set", "distill=code"]) == 0
    assert "distilled by the rule of the code" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.pt").teacher["sha256"]
