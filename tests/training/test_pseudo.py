"""Pseudo labels: what models say of a data set's images, stored, continued after a kill, and learned from."""

import hashlib
import json
import re
from functools import partial

import msgpack
import numpy as np
import pytest
import torch
from tiny_runs import tiny
from web_set import make_web_set

from softshard.loaders import Augment, Loader
from softshard.shards import Manifest, read_shard
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.training import joint, semantic_softmax, single_label, weakly_tagged
from softshard.training import pseudo as pseudo_recipe
from softshard.training.predict import Predictor
from softshard.training.pseudo_store import PseudoOptions, best_classes, make_pseudo_labels
from softshard.training.teacher import CheckpointTeacher
from softshard.training.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pseudo")


tiny = partial(tiny, augment="none")


def trained(recipe, shards, out, **options):
    options = {"model": "test_resnet", "log": lambda line: None, **options}
    train(recipe, str(shards / "train"), out=out, **options)
    return out / "checkpoint.pt"


@pytest.fixture(scope="module")
def checkpoints(shards, folder):
    """Two models of whole, squished images, so that `predict` sees what `pseudo make` does."""
    return [
        trained(tiny(single_label(), epochs=4, lr=3e-3), shards, folder / str(seed), seed=seed)
        for seed in (0, 1)
    ]


def stored(dataset):
    """key -> ({class: weight}, own class)."""
    return {
        sample.key: (
            dict(zip(*msgpack.unpackb(sample.parts["soft"]), strict=True)),
            int(sample.parts["cls"]),
        )
        for shard in Manifest.load(dataset).shards
        for sample in read_shard(dataset / shard.name)
    }


def predicted(checkpoints, dataset):
    """key -> [(class, probability)], the most probable first."""
    predictor = Predictor(checkpoints[0], ensemble=checkpoints[1:], top=6)
    return {
        each.image: [(guess.index, guess.probability) for guess in each.best[0]]
        for each in predictor.data_set(str(dataset))
    }


@pytest.mark.parametrize("below", ["own", "none"])
@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("num_models", [1, 2])
def test_labels_are_the_best_classes_of_what_the_models_predict(
    num_models, top, below, shards, checkpoints, tmp_path
):
    models = checkpoints[:num_models]
    expected = predicted(models, shards / "train")
    threshold = float(np.median([guesses[0][1] for guesses in expected.values()]))  # half of them reach it
    options = PseudoOptions(threshold, top, below, batch_size=7)
    told = []
    make_pseudo_labels(
        shards / "train", tmp_path / "dst", models, options, labelled=lambda *counts: told.append(counts)
    )
    found = stored(tmp_path / "dst")
    assert found.keys() == expected.keys()
    sure = 0
    for key, (weights, own) in found.items():
        guesses = expected[key]
        if guesses[0][1] < threshold:
            assert weights == ({own: 1.0} if below == "own" else {})
            continue
        sure += 1
        kept = guesses[:top]
        total = sum(probability for _, probability in kept)
        assert weights == pytest.approx({index: probability / total for index, probability in kept}, abs=1e-5)
        assert sum(weights.values()) == pytest.approx(1)
    assert 0 < sure < len(found)
    assert [sum(column) for column in zip(*told, strict=True)] == [sure, 48]


def test_everything_else_keeps_its_bytes_and_the_manifest_says_how(shards, checkpoints, tmp_path):
    made = make_pseudo_labels(shards / "train", tmp_path / "dst", checkpoints, PseudoOptions(0.3, 2))
    how = Manifest.load(tmp_path / "dst").soft_labels.pseudo
    assert (how["threshold"], how["top"], how["below"], how["size"]) == (0.3, 2, "own", 32)
    assert [model["model"] for model in how["models"]] == ["test_resnet"] * 2
    assert len({model["checkpoint_sha256"] for model in how["models"]}) == 2
    source = Manifest.load(shards / "train")
    assert made.components == (*source.components, "soft")
    for record in source.shards:
        pairs = zip(
            read_shard(shards / "train" / record.name),
            read_shard(tmp_path / "dst" / record.name),
            strict=True,
        )
        for before, after in pairs:
            assert {suffix: after.parts[suffix] for suffix in before.parts} == before.parts
    assert main(["verify", str(tmp_path / "dst")]) == 0


def test_a_killed_run_continues_to_the_same_bytes(shards, checkpoints, tmp_path):
    class Killed(Exception):
        pass

    batches = 0

    def kill(_num_sure, _num):
        nonlocal batches
        batches += 1
        if batches == 3:
            raise Killed

    options = PseudoOptions(0.3, batch_size=10)
    make_pseudo_labels(shards / "train", tmp_path / "whole", checkpoints, options)
    with pytest.raises(Killed):
        make_pseudo_labels(shards / "train", tmp_path / "killed", checkpoints, options, labelled=kill)
    told = []
    make_pseudo_labels(
        shards / "train",
        tmp_path / "killed",
        checkpoints,
        options,
        labelled=lambda *counts: told.append(counts),
    )
    assert sum(seen for _, seen in told) == 32  # the first shard of 16 was finished
    for record in Manifest.load(tmp_path / "whole").shards:
        assert (tmp_path / "whole" / record.name).read_bytes() == (
            tmp_path / "killed" / record.name
        ).read_bytes()
    with pytest.raises(UsageError, match="of another run"):
        make_pseudo_labels(
            shards / "train", tmp_path / "killed", checkpoints, PseudoOptions(0.4, batch_size=10)
        )


def test_training_learns_from_the_stored_labels(shards, checkpoints, tmp_path):
    make_pseudo_labels(shards / "train", tmp_path / "dst", checkpoints, PseudoOptions(0.3, 2))
    with Loader(
        tmp_path / "dst", batch_size=4, targets="pseudo", augment=Augment(size=32), shuffle=False
    ) as loader:
        batch = next(iter(loader))
    found = stored(tmp_path / "dst")
    for key, row in zip(batch.keys, batch.targets, strict=True):
        assert {i: weight for i, weight in enumerate(row.tolist()) if weight} == pytest.approx(found[key][0])
    recipe = tiny(pseudo_recipe(), accumulate=2, epochs=2)
    out = tmp_path / "run"
    result = train(
        recipe,
        str(tmp_path / "dst"),
        model="test_resnet",
        out=out,
        val=str(shards / "val"),
        init_from=checkpoints[0],
        log=lambda line: None,
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_the_command_labels_and_says_how_many(shards, checkpoints, tmp_path, capsys):
    models = [str(path) for path in checkpoints]
    command = ["pseudo", "make", str(shards / "train"), str(tmp_path / "dst"), "--device", "cpu", "--model"]
    assert main([*command, *models, "--threshold", "0", "--top", "2", "--below", "none"]) == 0
    out = capsys.readouterr().out
    assert "48 samples with pseudo labels" in out
    assert "48 of the 48 images of this process got a label of the model's, the others have none" in out
    assert (
        json.loads((tmp_path / "dst" / "manifest.json").read_text())["soft_labels"]["pseudo"]["how"]["top"]
        == 2
    )


def test_a_model_that_says_nothing_finite_is_named(shards, checkpoints, tmp_path, monkeypatch):
    ask = CheckpointTeacher.__call__

    def spoiled(self, inputs):
        logits = ask(self, inputs)
        if self.sha256 == hashlib.sha256(checkpoints[1].read_bytes()).hexdigest():
            logits[-1, 0] = float("nan")
        return logits

    monkeypatch.setattr(CheckpointTeacher, "__call__", spoiled)
    message = rf"^{re.escape(str(checkpoints[1]))}: expected finite probabilities, found others; .*Give another model$"
    with pytest.raises(DataError, match=message):
        make_pseudo_labels(str(shards / "train"), tmp_path / "dst", checkpoints)


def test_the_command_tells_a_program_what_it_wrote(shards, checkpoints, tmp_path, capsys):
    command = ["pseudo", "make", str(shards / "train"), str(tmp_path / "dst"), "--device", "cpu", "--json"]
    assert main([*command, "--model", str(checkpoints[0])]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], "soft" in told["components"]) == (48, True)


def test_tags_and_weights_of_a_data_set_stay(tmp_path):
    web = make_web_set(tmp_path / "web", num=6)
    checkpoint = trained(tiny(joint()), web, tmp_path / "joint")
    make_pseudo_labels(web / "train", tmp_path / "dst", [checkpoint], PseudoOptions(0.0))
    with Loader(
        tmp_path / "dst", batch_size=4, targets=("pseudo", "tags", "weights"), augment=Augment(size=32)
    ) as loader:
        batch = next(iter(loader))
        assert loader.vocabulary is not None
    assert batch.targets.sum(dim=1).tolist() == pytest.approx([1] * 4)
    assert {name: tuple(each.shape) for name, each in batch.more_targets.items()} == {
        "tags": (4, 7),
        "weights": (4, 4),
    }


def test_models_without_probabilities_over_the_classes_are_refused(shards, tmp_path):
    levels = trained(tiny(semantic_softmax()), shards, tmp_path / "levels")
    with pytest.raises(UsageError, match="expected a model of one softmax over all classes"):
        make_pseudo_labels(shards / "train", tmp_path / "dst", [levels])
    web = make_web_set(tmp_path / "web", num=6)
    tags = trained(tiny(weakly_tagged()), web, tmp_path / "tags")
    with pytest.raises(DataError, match="outputs: expected 7 keywords, found 4 classes"):
        make_pseudo_labels(web / "train", tmp_path / "dst", [tags])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold: expected a probability from 0 to 1, found 1.5"),
        ({"threshold": float("nan")}, "threshold: expected a probability from 0 to 1, found nan"),
        ({"top": 0}, "top: expected at least 1, found 0"),
        ({"amp": "fp16"}, "amp: expected one of bfloat16, float16, found 'fp16'"),
        ({"below": "drop"}, "below: expected one of own, none, found 'drop'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        PseudoOptions(**options)


def test_a_probability_that_is_the_threshold_reaches_it():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]], dtype=torch.float64)
    values, ids, sure = best_classes(probabilities, PseudoOptions(0.5, top=9))
    assert sure.tolist() == [True, False]
    assert values[0].tolist() == [0.5, 0.25, 0.25]
    assert ids[0, 0] == 0


def test_a_misspelt_option_is_told_before_anything_is_read():
    with pytest.raises(
        TypeError, match=r"make_pseudo_labels\(\) got an unexpected keyword argument 'devise'"
    ):
        make_pseudo_labels("no data set", "no destination", ["no.pt"], devise="cuda")  # pyright: ignore[reportCallIssue]
