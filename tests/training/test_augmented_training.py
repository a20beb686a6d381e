"""Training on augmented and mixed batches: whole runs, and what the loss sees of a mixed batch."""

import dataclasses
from functools import partial

import pytest
import torch
from tiny_runs import Killed, assert_same_weights, kill_at, run, tiny

from softshard.loaders import Loader
from softshard.shards.errors import UsageError
from softshard.training import relabel, semantic_softmax
from softshard.training.losses import SoftTargetLoss
from softshard.training.models import create_model
from softshard.training.recipe_presets import paper_cutmix, visible_cutmix
from softshard.training.step import TrainStep

tiny = partial(tiny, epochs=3, global_batch=20)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (paper_cutmix(relabel()), {"mix_off_epochs": 1}),
        (visible_cutmix(relabel()), {"mix_off_epochs": 1, "accumulate": 2, "precision": "bfloat16"}),
        (relabel(), {"targets": "original", "augment": "mixup:0.2+cutmix:1+erasing:0.5"}),
        (semantic_softmax(), {}),
    ],
    ids=["cutmix", "visible cutmix in bfloat16 micro-batches", "mixup and cutmix, one-hot", "randaugment"],
)
def test_a_killed_run_on_augmented_batches_continues_bit_for_bit(
    recipe, changes, shards, tmp_path, monkeypatch
):
    recipe = tiny(recipe, **changes)
    lines = []
    whole = run(recipe, shards, tmp_path / "whole", val=str(shards / "val"), log=lines.append)
    assert (
        "global batch 20 (20 on each of 1 processes), 2 steps an epoch from 48 samples (8 samples" in lines[0]
    )
    assert f"augmented by {recipe.augment}" in lines[0]
    with monkeypatch.context() as patch:
        kill_at(patch, 1 + 3 * recipe.accumulate)
        with pytest.raises(Killed):
            run(recipe, shards, tmp_path / "parts", val=str(shards / "val"), checkpoint_steps=1)
    parts = run(recipe, shards, tmp_path / "parts", val=str(shards / "val"), resume=True, num_threads=1)
    assert parts.history == whole.history
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_loss_of_a_mixed_batch_is_its_soft_cross_entropy_whatever_the_micro_batches(accumulate, shards):
    recipe = tiny(visible_cutmix(relabel()), global_batch=8, mix_off_epochs=0, accumulate=accumulate)
    with Loader(
        shards / "train",
        batch_size=8,
        targets=recipe.targets,
        augment=recipe.train_augment(),
        last_batch="pad",
    ) as loader:
        loader.set_epoch(1)
        batch = list(loader)[-1]
    assert (batch.mix.partners != torch.arange(8)).any()
    model = create_model("test_vit", loader.num_classes, 32).eval()
    with torch.no_grad():
        logits = model(batch.images)
    rows = -(batch.targets * logits.log_softmax(dim=1)).sum(dim=1)
    step = TrainStep(recipe, model, SoftTargetLoss(), torch.optim.SGD(model.parameters(), lr=0.0))
    torch.testing.assert_close(step(batch).loss, rows[batch.valid].mean())


def test_a_run_whose_mixing_has_ended_cannot_be_given_more_epochs(shards, tmp_path):
    constant = {"schedule": "constant", "warmup": 0.0, "mix_off_epochs": 1, "epochs": 2}
    recipe = tiny(paper_cutmix(relabel()), **constant)
    run(recipe, shards, tmp_path)
    with pytest.raises(
        UsageError, match=r"epochs: 2, not 3 \(images were no longer mixed: mix_off_epochs is 1\)"
    ):
        run(dataclasses.replace(recipe, epochs=3), shards, tmp_path, resume=True)


def test_an_odd_batch_on_each_process_is_refused_for_mixing(shards, tmp_path):
    with pytest.raises(UsageError, match="expected an even batch_size"):
        run(tiny(paper_cutmix(relabel()), global_batch=9, mix_off_epochs=1), shards, tmp_path)
