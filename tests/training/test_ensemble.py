"""Ensembles: exact means of probabilities, of models that see images each in its own way; and what is refused."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from json_page import read_json
from tiny_runs import tiny
from web_set import make_web_set

from softshard.shards.cli import main
from softshard.shards.errors import DataError
from softshard.training import joint, multi_label_bce, relabel, semantic_softmax, single_label, weakly_tagged
from softshard.training.checkpoint import load_checkpoint
from softshard.training.ensemble import MeanProbability, evaluate_ensemble, load_members
from softshard.training.evaluate import evaluate
from softshard.training.predict import Predictor
from softshard.training.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ensemble")


@pytest.fixture(scope="module")
def members(shards, folder):
    """Three models of the same classes: other seeds, sizes, centres, pixel ranges and architectures."""
    recipes = {
        "a": tiny(single_label()),
        "b": tiny(single_label(), image_size=48, normalise=True, eval_centre=0.8),
        "c": tiny(relabel()),
    }
    models = {"a": "test_resnet", "b": "test_resnet", "c": "test_efficientnet"}
    for seed, (name, recipe) in enumerate(recipes.items()):
        train_tiny(recipe, shards, folder / name, model=models[name], seed=seed)
    return [folder / name / "checkpoint.pt" for name in recipes]


tiny = partial(tiny, augment="none")


def train_tiny(recipe, shards, out, **options):
    options = {"model": "test_resnet", "log": lambda line: None, **options}
    return train(recipe, str(shards / "train"), out=out, **options)


def probabilities(checkpoints, dataset, top=6):
    """Of every image and class, float64 [N, C], in order of the class index."""
    predictor = Predictor(checkpoints[0], ensemble=checkpoints[1:], top=top)
    rows = []
    for prediction in predictor.data_set(str(dataset)):
        row = {guess.index: guess.probability for level in prediction.best for guess in level}
        rows.append([row[index] for index in sorted(row)])
    return np.array(rows)


def test_probabilities_are_the_mean_of_the_members(shards, members):
    alone = [probabilities([path], shards / "val") for path in members]
    together = probabilities(members, shards / "val")
    assert np.abs(np.diff(alone, axis=0)).max() > 1e-3
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=0, atol=1e-12)


def test_the_accuracy_is_that_of_the_mean(shards, members):
    alone = [probabilities([path], shards / "val") for path in members]
    numbers = evaluate_ensemble(members, str(shards / "val"), batch_size=5)
    classes = np.load(shards / "val" / "classes.npy")
    assert numbers["top1"] == pytest.approx((np.mean(alone, axis=0).argmax(axis=1) == classes).mean())
    assert numbers["model"] == ["test_resnet", "test_resnet", "test_efficientnet"]
    assert numbers["recipe"] == ["single-label", "single-label", "relabel"]


def test_an_ensemble_of_one_model_twice_is_that_model(shards, members):
    alone = evaluate(members[1], str(shards / "val"))
    twice = evaluate_ensemble([members[1]] * 2, str(shards / "val"))
    about = ("model", "recipe", "step", "weights")
    assert {name: twice[name] for name in twice if name not in about} == {
        name: alone[name] for name in alone if name not in about
    }


def test_files_are_predicted_as_the_samples_they_were_packed_as(shards, members):
    predictor = Predictor(members[0], ensemble=members[1:])
    files = sorted((shards.parent / "images" / "cat").glob("*.jpg"))[:3]
    bad = []
    broken = shards.parent / "broken.jpg"
    broken.write_bytes(b"no image")
    found = list(predictor.files([*map(str, files), str(broken)], bad.append, batch_size=2))
    alone = [list(Predictor(path).files(list(map(str, files)), bad.append)) for path in members]
    assert len(bad) == 1
    for i, prediction in enumerate(found):
        best = prediction.best[0][0]
        shares = [guess.probability for each in alone for guess in each[i].best[0] if guess.name == best.name]
        if len(shares) == len(members):  # among the best three of all
            assert best.probability == pytest.approx(np.mean(shares), abs=1e-12)


def test_levels_are_averaged_within_levels_and_sigmoids_one_by_one(shards, folder):
    for recipe in (semantic_softmax(), multi_label_bce()):
        paths = []
        for seed in range(2):
            out = folder / f"{recipe.name}-{seed}"
            train_tiny(tiny(recipe), shards, out, seed=seed)
            paths.append(out / "checkpoint.pt")
        alone = [probabilities([path], shards / "val") for path in paths]
        together = probabilities(paths, shards / "val")
        np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=0, atol=1e-12)
        assert evaluate_ensemble(paths, str(shards / "val"))["samples"] == 12


def test_a_joint_ensemble_averages_classes_and_keywords_apart(tmp_path):
    web = make_web_set(tmp_path / "web", num=6)
    paths = []
    for seed in range(2):
        train_tiny(tiny(joint()), web, tmp_path / str(seed), seed=seed)
        paths.append(tmp_path / str(seed) / "checkpoint.pt")
    logits = [torch.randn(5, 11, generator=torch.manual_seed(seed)) * 3 for seed in range(2)]
    together = MeanProbability(load_checkpoint(paths[0]), with_tags=True)(logits)
    for part in (slice(0, 4), slice(4, 11)):
        expected = torch.stack([each[:, part].double().softmax(dim=1) for each in logits]).mean(dim=0)
        torch.testing.assert_close(together[:, part].softmax(dim=1), expected)
    numbers = evaluate_ensemble(paths, str(web / "val"))
    assert {"top1", "tag_top1", "balanced_top5"} <= numbers.keys()
    # Beside a model of classes alone it is one.
    train_tiny(tiny(single_label()), web, tmp_path / "plain")
    for order in (
        [paths[0], tmp_path / "plain" / "checkpoint.pt"],
        [tmp_path / "plain" / "checkpoint.pt", paths[0]],
    ):
        expected = np.mean([probabilities([path], web / "val", top=4) for path in order], axis=0)
        np.testing.assert_allclose(probabilities(order, web / "val", top=4), expected, rtol=0, atol=1e-12)
        numbers = evaluate_ensemble(order, str(web / "val"))
        classes = np.load(web / "val" / "classes.npy")
        assert numbers["top1"] == pytest.approx((expected.argmax(axis=1) == classes).mean())
        assert "tag_top1" not in numbers


def test_the_mean_of_extreme_logits_is_finite():
    class Plain:
        recipe, tree = single_label(), None

    logits = [torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])]
    found = MeanProbability(Plain())(logits)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found.softmax(dim=1), torch.tensor([[0.5, 0.5]], dtype=torch.float64))


def test_models_whose_outputs_mean_something_else_are_refused(shards, members, tmp_path):
    train_tiny(tiny(semantic_softmax()), shards, tmp_path / "levels")
    with pytest.raises(
        DataError, match="do not make an ensemble: probabilities: expected one softmax, found a softmax per"
    ):
        load_members([members[0], tmp_path / "levels" / "checkpoint.pt"])
    web = make_web_set(tmp_path / "web", num=6)
    train_tiny(tiny(weakly_tagged()), web, tmp_path / "tags")
    with pytest.raises(DataError, match="outputs: expected 6 classes, found 7 keywords"):
        load_members([members[0], tmp_path / "tags" / "checkpoint.pt"])
    train_tiny(tiny(single_label()), web, tmp_path / "web-classes")
    with pytest.raises(DataError, match="class list: expected"):
        load_members([members[0], tmp_path / "web-classes" / "checkpoint.pt"])


def test_the_commands_take_more_checkpoints(shards, members, capsys):
    more = ["--ensemble", str(members[1]), "--ensemble", str(members[2])]
    val = str(shards / "val")
    assert main(["evaluate", str(members[0]), val, *more, "--json"]) == 0
    assert len(read_json("evaluate", capsys.readouterr().out)["model"]) == 3
    assert main(["evaluate", str(members[0]), val, *more]) == 0
    assert "test_resnet, test_resnet, test_efficientnet" in capsys.readouterr().out
    assert main(["predict", str(members[0]), val, *more, "--json", "--top", "6"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert sum(guess["probability"] for guess in first["best"][0]) == pytest.approx(1)
    assert main(["evaluate", "timm:test_resnet", val, *more]) == 2
    assert "--ensemble: expected checkpoints of softshard train, found timm:NAME" in capsys.readouterr().err
