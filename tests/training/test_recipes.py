"""The papers' numbers, overrides, and the learning rates that follow."""

import dataclasses
import warnings

import pytest
import torch

from softshard.loaders import RANDAUGMENT_21K, Augment, CutMix, Erasing, Loader, Mixup, RandAugment
from softshard.loaders.augment_text import parse_augment
from softshard.loaders.target_modes import TARGET_MODES
from softshard.shards.errors import UsageError
from softshard.training.objective import create_loss, target_of
from softshard.training.recipe_list import RECIPES
from softshard.training.recipe_presets import PRESETS, small, with_settings
from softshard.training.recipes import (
    multi_label_asl,
    multi_label_bce,
    relabel,
    semantic_kd,
    semantic_softmax,
    single_label,
    transfer,
)
from softshard.training.schedule import create_schedule, first_other_rate


def learning_rates(recipe, total_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    schedule = create_schedule(recipe, optimizer, total_steps)
    rates = []
    for step in range(total_steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_semantic_softmax_has_the_papers_numbers():
    recipe = semantic_softmax()
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.smoothing) == ("adam", 3e-4, 1e-4, 0.2)
    assert (recipe.schedule, recipe.epochs, recipe.warmup, recipe.warmup_from) == (
        "one-cycle",
        80,
        0.1,
        1 / 20,
    )
    assert (recipe.crop_scale, recipe.normalise, recipe.image_size) == (None, False, 224)


def test_the_other_losses_over_a_tree_differ_from_semantic_softmax_in_their_loss_alone():
    for recipe, fields in (
        (multi_label_bce(), {"name", "loss", "smoothing"}),
        (multi_label_asl(), {"name", "loss", "smoothing"}),
        (semantic_kd(), {"name", "distill"}),
    ):
        assert {line.partition(":")[0] for line in recipe.differences(semantic_softmax())} == fields
    asl = multi_label_asl()
    assert (asl.gamma_neg, asl.gamma_pos, asl.asl_clip, asl.smoothing) == (4.0, 1.0, 0.05, 0.0)
    assert (semantic_kd().distill, semantic_softmax().weight_clamp) == ("paper", 20.0)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (multi_label_bce, {"balance": "images"}, "balance: expected 'classes' with the loss 'multi-label'"),
        (single_label, {"distill": "paper"}, "distill: expected 'none' with the loss 'single-label'"),
        (single_label, {"level_order": True}, "level_order: expected False with the loss 'single-label'"),
        (relabel, {"levels": 3}, "levels: expected None with the loss 'soft-target', found 3"),
        (semantic_softmax, {"levels": 0}, "levels: expected at least 1, or none for all, found 0"),
        (semantic_softmax, {"weight_clamp": 0.0}, "weight_clamp: expected more than 0"),
        (semantic_softmax, {"balance": "pixels"}, "balance: expected one of"),
        (semantic_kd, {"distill": "both"}, "distill: expected one of"),
        (semantic_kd, {"distill_weight": 0.0}, "distill_weight: expected more than 0"),
        (multi_label_asl, {"gamma_neg": -1.0}, "gamma_neg: expected 0 or more"),
        (multi_label_asl, {"asl_clip": 1.0}, "asl_clip: expected a number in"),
        (semantic_softmax, {"augment": "cutmix:1"}, "no mixing with the loss 'semantic-softmax'"),
        (relabel, {"mix_off_epochs": 5}, "expected 0 to 0 without mixup and cutmix, found 5"),
        (
            relabel,
            {"augment": "mixup:1", "mix_off_epochs": 301},
            "epochs, 300, found 301; --set mix_off_epochs=0",
        ),
        (relabel, {"eval_centre": 0.0}, "eval_centre: expected a share above 0"),
    ],
)
def test_options_that_contradict_each_other_or_that_a_loss_does_not_look_at_are_refused(
    recipe, changes, message
):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(recipe(), **changes)


def test_relabel_has_the_papers_numbers():
    recipe = relabel()
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.momentum) == ("sgd", 0.1, 1e-4, 0.9)
    assert (recipe.schedule, recipe.epochs, recipe.warmup * recipe.epochs) == ("cosine", 300, 5)
    assert (recipe.global_batch, recipe.crop_scale, recipe.flip) == (1024, (0.08, 1.0), True)
    assert recipe.train_augment() == Augment(224, (0.08, 1.0), color_jitter=0.4, lighting=0.1)
    assert recipe.evaluation_augment() == Augment.evaluation(224, 0.875)


@pytest.mark.parametrize(("preset", "visible"), [("paper-cutmix", False), ("visible-cutmix", True)])
def test_relabel_with_cutmix_mixes_until_five_epochs_before_the_end(preset, visible):
    recipe = PRESETS[preset](relabel())
    augment = recipe.train_augment()
    assert {line.partition(":")[0] for line in recipe.differences(relabel())} == {
        "name",
        "augment",
        "mix_off_epochs",
    }
    assert (augment.cutmix, augment.mix_until_epoch) == (CutMix(1.0, visible=visible), 295)
    assert (augment.color_jitter, augment.lighting) == (0.4, 0.1)
    longer = with_settings(recipe, ["epochs=20", "mix_off_epochs=3"])
    assert longer.train_augment().mix_until_epoch == 17


def test_imagenet_21k_ps_recipes_cut_out_and_draw_operations():
    for recipe in (single_label(), semantic_softmax(), semantic_kd(), multi_label_asl(), transfer()):
        expected = Augment(224, None, flip=False, cutout=0.5, randaugment=RANDAUGMENT_21K)
        assert recipe.train_augment() == expected
        assert recipe.evaluation_augment() == Augment.evaluation(224)
        assert not small(recipe).train_augment().changes_pixels


def test_augmentation_is_given_as_parts():
    text = "color-jitter:0.3+lighting:0.2+cutout:0.25+randaugment:3:7+erasing:0.5+mixup:0.2+cutmix:2"
    recipe = with_settings(relabel(), [f"augment={text}", "eval_centre=none"])
    assert recipe.train_augment() == Augment(
        224,
        (0.08, 1.0),
        color_jitter=0.3,
        lighting=0.2,
        cutout=0.25,
        randaugment=RandAugment(3, 7),
        erasing=Erasing(0.5),
        mixup=Mixup(0.2),
        cutmix=CutMix(2.0),
        mix_until_epoch=300,
    )
    assert f"augmented by {text}" in recipe.how()
    assert parse_augment("none") == Augment()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "blur:2",
            "augment: expected 'none', or parts joined by .* of color-jitter:STRENGTH, .*, found 'blur:2'",
        ),
        ("cutout", "found 'cutout'"),
        ("cutout:0.5:3", "found 'cutout:0.5:3'"),
        ("randaugment:2.5:9", "found 'randaugment:2.5:9'"),
        ("", "found ''"),
        ("cutmix:1+visible-cutmix:1", "expected one part for cutmix"),
        ("mixup:0", "Mixup: expected an alpha above 0, found 0.0"),
    ],
)
def test_wrong_parts_of_an_augmentation_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        with_settings(relabel(), [f"augment={text}"])


def test_transfer_has_the_papers_numbers():
    recipe = transfer()
    assert (recipe.epochs, recipe.ema_decay, recipe.schedule) == (50, 0.995, "cosine")
    assert recipe.warmup * recipe.epochs == pytest.approx(3)
    assert (recipe.loss, recipe.new_head, recipe.freeze) == ("single-label", True, False)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_small_preset_shrinks_every_recipe_and_nothing_else(name):
    recipe = RECIPES[name]()
    shrunk = small(recipe)
    changed = {line.partition(":")[0] for line in recipe.differences(shrunk)}
    assert changed <= {"name", "epochs", "global_batch", "image_size", "lr", "augment", "eval_centre"}
    assert (shrunk.global_batch, shrunk.image_size, shrunk.epochs) == (64, 128, min(20, recipe.epochs))
    # SGD's step per image stays; Adam's rate does.
    shares = {"sgd": 64 / 1024, "momentum": 64 / 256, "adam": 1.0}
    assert shrunk.lr == pytest.approx(recipe.lr * shares[recipe.optimizer])
    assert PRESETS["paper"](recipe) == recipe


def test_settings_change_fields_by_their_types():
    settings = [
        "ema_decay=0.999",
        "crop_scale=0.25,1",
        "levels=5",
        "weight_clamp=none",
        "flip=true",
        "schedule=cosine",
    ]
    recipe = with_settings(semantic_softmax(), settings)
    assert (recipe.ema_decay, recipe.crop_scale, recipe.levels) == (0.999, (0.25, 1.0), 5)
    assert (recipe.weight_clamp, recipe.flip, recipe.schedule) == (None, True, "cosine")


def test_wrong_settings_are_all_named():
    with pytest.raises(UsageError) as error:
        with_settings(
            relabel(),
            ["colour=1", "epochs=1.5", "flip=yes", "lr=none", "crop_scale=1", "levels=x", "epochs", "name=x"],
        )
    for text in (
        "'colour=1': expected FIELD=VALUE", "'epochs=1.5': expected a whole number, found '1.5'",
        "'flip=yes': expected true or false", "'lr=none': expected a number, found 'none'",
        "'crop_scale=1': expected two numbers with a comma or none", "'levels=x': expected a whole number or none",
        "'epochs': expected FIELD=VALUE", "'name=x': expected FIELD=VALUE",
    ):  # fmt: skip
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"precision": "float8"}, "precision: expected one of"),
        ({"accumulate": 0}, "accumulate: expected at least 1"),
        ({"lanes": 0}, "lanes: expected at least 1"),
        ({"ema_decay": 1.0}, r"ema_decay: expected a number in \[0, 1\)"),
        ({"clip_norm": 0.0}, "clip_norm: expected more than 0"),
        ({"weight_decay": -1e-4}, "weight_decay: expected 0 or more"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\)"),
        ({"warmup_from": -1.0}, "warmup_from: expected a number from 0 to 1"),
    ],
)
def test_impossible_steps_are_refused(changes, field):
    with pytest.raises(UsageError, match=field):
        dataclasses.replace(relabel(), **changes)


def test_single_label_differs_from_semantic_softmax_in_its_loss_only():
    assert single_label().differences(semantic_softmax()) == [
        "name: 'single-label', not 'semantic-softmax'",
        "loss: 'single-label', not 'semantic-softmax'",
    ]


def test_recipes_are_found_by_their_names():
    assert {name: function().name for name, function in RECIPES.items()} == {name: name for name in RECIPES}


def test_a_misspelt_override_is_a_type_error():
    with pytest.raises(TypeError, match="epoch"):
        dataclasses.replace(relabel(), epoch=3)  # pyright: ignore[reportCallIssue]


def test_every_problem_of_a_recipe_is_listed():
    with pytest.raises(UsageError) as error:
        dataclasses.replace(
            relabel(), loss="bce", schedule="linear", epochs=0, lr=-1.0, crop_scale=(0.5, 0.2), smoothing=1.0
        )
    for field in ("loss", "schedule", "epochs", "lr", "crop_scale", "smoothing"):
        assert f"{field}: expected" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "field", ["lr", "weight_decay", "momentum", "warmup_from", "smoothing", "crop_scale"]
)
def test_numbers_that_are_not_finite_are_refused(field, value):
    with pytest.raises(UsageError, match=f"{field}: expected finite numbers, found") as error:
        dataclasses.replace(relabel(), **{field: (0.1, value) if field == "crop_scale" else value})
    assert str(error.value).count(f"{field}: expected") == 1


@pytest.mark.parametrize("targets", ["original", *TARGET_MODES])
def test_recipes_know_every_target_mode_of_the_loader(targets, shards):
    recipe = with_settings(small(relabel()), [f"targets={targets}", "image_size=32"])
    loss = create_loss(recipe, tree=None)
    augment = Augment(size=32, scale=(0.2, 0.5))
    with Loader(shards / "train", batch_size=4, targets=recipe.targets, augment=augment) as loader:
        batch = next(iter(loader))
    target = target_of(recipe, batch)
    logits = torch.randn(4, loader.num_classes, generator=torch.manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(loss(logits, target, batch.valid, 4), expected)
    one_hot = torch.equal(target.amax(dim=1), torch.ones(4))
    assert one_hot == (targets == "original" or targets.endswith("single"))


def test_soft_target_loss_needs_soft_targets():
    with pytest.raises(UsageError, match="expected soft targets for the loss 'soft-target', found 'none'"):
        dataclasses.replace(relabel(), targets="none")


@pytest.mark.parametrize("total_steps", [2, 7, 10, 55, 300])
def test_one_cycle_equals_torch(total_steps):
    recipe = semantic_softmax()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    if total_steps == 10:
        # torch divides by zero where the warm-up is a single step; ours starts at the top then.
        assert learning_rates(recipe, 10)[0] == recipe.lr
        return
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps, pct_start=0.1, cycle_momentum=False, div_factor=20
    )
    expected = []
    with warnings.catch_warnings(action="ignore"):
        for _ in range(total_steps):
            expected.append(optimizer.param_groups[0]["lr"])
            if len(expected) < total_steps:
                oracle.step()
    assert learning_rates(recipe, total_steps) == pytest.approx(expected, rel=1e-9)


def test_cosine_rises_in_a_line_from_zero_and_falls_to_zero():
    rates = learning_rates(dataclasses.replace(relabel(), warmup=0.1), 100)
    assert rates[:11] == pytest.approx([0.1 * step / 10 for step in range(11)])
    assert rates[55] == pytest.approx(0.05)
    assert 0 < rates[-1] < 1e-4


def test_constant_rises_in_a_line_and_stays():
    rates = learning_rates(
        dataclasses.replace(relabel(), schedule="constant", warmup=0.1, warmup_from=0.5), 100
    )
    assert rates[:10] == pytest.approx([0.05 + 0.05 * step / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([0.1] * 90)


@pytest.mark.parametrize(
    ("schedule", "warmup", "steps", "same"),
    [
        ("one-cycle", 0.1, 7, False),
        ("cosine", 0.0, 2, False),
        ("constant", 0.5, 7, False),
        ("constant", 0.0, 7000, True),
        ("cosine", 0.0, 0, True),
    ],
)
def test_more_epochs_change_the_rates_of_steps_already_taken_or_not(schedule, warmup, steps, same):
    recipe = dataclasses.replace(relabel(), schedule=schedule, warmup=warmup, epochs=10)
    parting = first_other_rate(recipe, dataclasses.replace(recipe, epochs=11), 1000, steps)
    assert (parting is None) == same
