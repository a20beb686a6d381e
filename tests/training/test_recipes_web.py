"""Recipes of noisy web labels: their numbers, what they refuse, and the learning rates of the step schedule."""

import dataclasses

import pytest
import torch

from softshard.shards.errors import UsageError
from softshard.training import fine_tune, joint, label_weighted, larger_images, pseudo, relabel, weakly_tagged
from softshard.training.recipe_presets import with_settings
from softshard.training.schedule import create_schedule, first_other_rate


def learning_rates(recipe, steps_per_epoch):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    schedule = create_schedule(recipe, optimizer, recipe.epochs * steps_per_epoch)
    rates = []
    for step in range(recipe.epochs * steps_per_epoch):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_fine_tuning_has_the_slides_numbers():
    recipe = fine_tune()
    assert (recipe.optimizer, recipe.lr, recipe.momentum) == ("momentum", 0.01, 0.9)
    assert (recipe.schedule, recipe.step_epochs, recipe.step_factor) == ("step", 90, 0.1)
    assert (recipe.global_batch, recipe.accumulate, recipe.new_head) == (256, 8, True)


def test_the_step_schedule_drops_every_90_epochs():
    rates = learning_rates(fine_tune(), steps_per_epoch=3)
    assert rates == pytest.approx([0.01] * 270 + [0.001] * 270 + [0.0001] * 270)


@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_the_step_schedule_equals_torch(steps_per_epoch):
    recipe = dataclasses.replace(fine_tune(), epochs=10, step_epochs=3, step_factor=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3 * steps_per_epoch, gamma=0.5)
    expected = []
    for _ in range(10 * steps_per_epoch):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert learning_rates(recipe, steps_per_epoch) == pytest.approx(expected)


def test_the_step_schedule_warms_up_and_can_be_given_more_epochs():
    recipe = dataclasses.replace(fine_tune(), epochs=10, warmup=0.2, warmup_from=0.0, step_epochs=4)
    rates = learning_rates(recipe, steps_per_epoch=2)
    assert rates == pytest.approx([0.0, 0.0025, 0.005, 0.0075] + [0.01] * 4 + [0.001] * 8 + [0.0001] * 4)
    plain = dataclasses.replace(recipe, warmup=0.0)
    assert first_other_rate(plain, dataclasses.replace(plain, epochs=20), 2, 20) is None


def test_pretraining_is_relabels_recipe_with_other_targets_and_losses():
    for recipe, targets in (
        (weakly_tagged(), "tags"),
        (label_weighted(), "weights"),
        (joint(), "weights+tags"),
    ):
        fields = {line.partition(":")[0] for line in recipe.differences(relabel())}
        assert fields == {"name", "loss", "targets", "keep_targets", "epochs", "warmup"}
        assert recipe.targets == targets
    assert joint().loader_targets == ("weights", "tags")
    assert weakly_tagged().loader_targets == "tags"


def test_larger_images_keep_the_head_and_the_last_rate():
    fields = {line.partition(":")[0] for line in larger_images().differences(fine_tune())}
    assert fields == {"name", "image_size", "schedule", "lr_of_start", "epochs", "new_head"}


def test_pseudo_labels_are_fine_tuned_on():
    fields = {line.partition(":")[0] for line in pseudo().differences(fine_tune())}
    assert fields == {"name", "loss", "targets", "keep_targets"}


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (weakly_tagged, ["targets=weights"], "targets: expected 'tags' for the loss 'weakly-tagged'"),
        (
            label_weighted,
            ["targets=tags"],
            "expected soft targets for the loss 'label-weighted', found 'tags'",
        ),
        (label_weighted, ["targets=none", "keep_targets=none"], "expected soft targets for the loss"),
        (label_weighted, ["targets=weights+tags"], "expected soft targets for the loss"),
        (joint, ["targets=tags+weights"], r"such as 'weights\+tags', found 'tags\+weights'"),
        (joint, ["targets=weights"], r"such as 'weights\+tags', found 'weights'"),
        (joint, ["targets=weights+words"], "targets: expected one of"),
        (fine_tune, ["targets=weights+tags"], "expected one name for the loss 'single-label'"),
        (fine_tune, ["tag_weight=2"], "tag_weight: expected 1.0 with the loss 'single-label', found 2.0"),
        (joint, ["tag_weight=0"], "tag_weight: expected more than 0"),
        (weakly_tagged, ["keep_targets=0"], "keep_targets: expected none, or at least 1"),
        (fine_tune, ["keep_targets=5"], "keep_targets: expected none, or at least 1 with a loss of"),
        (fine_tune, ["class_balance=1.5"], "class_balance: expected a number from 0 to 1, found 1.5"),
        (fine_tune, ["step_epochs=0"], "step_epochs: expected at least 1"),
        (fine_tune, ["step_factor=0"], "step_factor: expected more than 0"),
        (weakly_tagged, ["augment=cutmix:1"], "expected no mixing of sparse targets"),
    ],
)
def test_settings_that_contradict_the_loss_are_refused(recipe, settings, message):
    with pytest.raises(UsageError, match=message):
        with_settings(recipe(), settings)


def test_dense_keywords_can_be_mixed():
    recipe = with_settings(weakly_tagged(), ["augment=cutmix:1", "keep_targets=none", "mix_off_epochs=2"])
    assert recipe.train_augment().cutmix is not None
