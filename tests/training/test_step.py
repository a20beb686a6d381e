"""Steps: micro-batches, averaged weights, mixed precision, clipping, frozen backbones; each against a plain reference."""

import dataclasses
import shutil
from functools import partial

import pytest
import safetensors.torch
import timm
import torch
from tiny_runs import losses, run, tiny

from softshard.loaders.batch import Batch
from softshard.shards.errors import DataError, UsageError
from softshard.training import semantic_softmax, single_label, transfer
from softshard.training.checkpoint import load_checkpoint
from softshard.training.evaluate import evaluate
from softshard.training.models import create_model, freeze_backbone
from softshard.training.objective import create_loss
from softshard.training.step import TrainStep
from softshard.training.steplog import MAX_SKIPPED_IN_A_ROW, StepLog

NO_BATCH_NORM = "test_convnext"


tiny, run = partial(tiny, epochs=2), partial(run, model=NO_BATCH_NORM)


def make_step(model=NO_BATCH_NORM, lr=0.1, **changes):
    """A step of plain SGD over a new model with six classes; the same weights for every call."""
    recipe = tiny(single_label(), normalise=True, **changes)
    torch.manual_seed(0)
    network = create_model(model, 6, 32)
    if recipe.freeze:
        freeze_backbone(network, model)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    step = TrainStep(recipe, network, create_loss(recipe, None), optimizer)
    step.train()
    return step


def make_batch(valid=(True,) * 8, scale=1.0):
    valid = torch.tensor(valid)
    num = len(valid)
    generator = torch.Generator().manual_seed(num)
    images = torch.randn(num, 3, 32, 32, generator=generator) * scale
    classes = torch.randint(6, (num,), generator=generator).masked_fill(~valid, -1)
    return Batch(
        images=images * valid[:, None, None, None], classes=classes, levels=None, targets=None,
        crops=torch.zeros(num, 4), flips=torch.zeros(num, dtype=torch.bool), keys=[""] * num, valid=valid,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("average", "name"), [(False, "bn1.running_var"), (True, "bn1.running_var"), (True, "conv1.0.weight")]
)
def test_all_that_a_checkpoint_keeps_is_looked_at(average, name):
    step = make_step("test_resnet", ema_decay=0.9)
    step.check_weights(0)
    (step.best_model if average else step.plain_model).state_dict()[name][0] = torch.inf
    found = f"average of {name}" if average else name
    with pytest.raises(
        DataError, match=rf"step 0: expected finite weights after it, found others in {found};"
    ):
        step.check_weights(0)


def test_what_spoilt_the_statistics_of_one_process_stops_all(on_two_ranks):
    def check(rank):
        step = make_step("test_resnet")
        step.world_size = 2
        if rank == 1:
            step.plain_model.bn1.running_var[0] = torch.inf
        with pytest.raises(DataError, match=r"step 3: .* found others in bn1\.running_var;") as caught:
            step.check_weights(3)
        return str(caught.value)

    (_, first), (_, second) = on_two_ranks(check)
    assert first == second


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "valid",
    [(True,) * 8, (True, True, True, False, False, False, False, False), (False, True) * 4, (False,) * 8],
)
def test_micro_batches_give_the_gradients_of_the_whole_batch(valid):
    whole, parts = make_step(), make_step(accumulate=4)
    loss, _ = whole(make_batch(valid))
    assert parts(make_batch(valid)).loss.item() == pytest.approx(loss.item(), rel=1e-6)
    expected = dict(whole.plain_model.named_parameters())
    for name, parameter in parts.plain_model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6)


def test_a_run_in_micro_batches_has_the_curve_of_one_without(shards, tmp_path):
    run(tiny(semantic_softmax()), shards, tmp_path / "1")
    run(tiny(semantic_softmax(), accumulate=4), shards, tmp_path / "4")
    assert losses(tmp_path / "4") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)


def test_micro_batches_of_unequal_size_are_refused(shards, tmp_path):
    with pytest.raises(
        UsageError, match="accumulate: expected a divisor of the 8 samples of each process, found 3"
    ):
        run(tiny(single_label(), accumulate=3), shards, tmp_path)


def test_lanes_that_do_not_divide_the_global_batch_are_refused(shards, tmp_path):
    with pytest.raises(UsageError, match="lanes: expected a divisor of the global batch 8, found 3"):
        run(tiny(single_label(), lanes=3), shards, tmp_path)


def test_micro_batches_of_one_sample_are_refused_where_batch_norm_needs_more(shards, tmp_path):
    with pytest.raises(
        UsageError, match="expected micro-batches of two samples or more for a model with batch norm"
    ):
        run(tiny(single_label(), accumulate=8), shards, tmp_path, model="test_resnet")


def test_averaged_weights_follow_their_formula():
    step = make_step("test_resnet", ema_decay=0.9)
    expected = state(step.plain_model)
    for _ in range(3):
        step(make_batch())
        for name, now in state(step.plain_model).items():
            expected[name] = 0.9 * expected[name] + 0.1 * now if now.is_floating_point() else now
    found = state(step.ema.module)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["fc.weight"], step.plain_model.state_dict()["fc.weight"])


def test_averaged_weights_are_what_is_evaluated_exported_and_loaded_by_timm(shards, tmp_path):
    lines = []
    recipe = tiny(semantic_softmax(), ema_decay=0.9, lr=1e-2)
    result = run(recipe, shards, tmp_path, model="test_resnet", val=str(shards / "val"), log=lines.append)
    saved = load_checkpoint(result.checkpoint)
    assert any(not torch.equal(saved.model[name], saved.model_ema[name]) for name in saved.model)
    assert "weights averaged with decay 0.9" in lines[0]
    assert any("averaged weights: semantic_accuracy" in line for line in lines)
    assert result.history[-1]["weights"] == "ema"
    numbers = evaluate(result.checkpoint, str(shards / "val"))
    assert {name: numbers[name] for name in result.history[-1] if name in numbers} == {
        name: value for name, value in result.history[-1].items() if name in numbers
    }
    exported = safetensors.torch.load_file(result.weights)
    with safetensors.safe_open(result.weights, "pt") as file:
        assert file.metadata()["weights"] == "ema"
    for path in (result.weights, result.checkpoint):
        loaded = timm.create_model("test_resnet", num_classes=6, checkpoint_path=path).state_dict()
        for name, tensor in saved.model_ema.items():
            assert torch.equal(loaded[name], tensor)
            assert torch.equal(exported[name], tensor)


def test_gradients_are_clipped_to_the_norm():
    step = make_step(clip_norm=0.01, lr=1.0)
    before = state(step.plain_model)
    step(make_batch())
    moved = sum(
        (before[name] - tensor).square().sum() for name, tensor in step.plain_model.state_dict().items()
    )
    assert moved.sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_runs_the_model_under_autocast_and_keeps_float32_weights():
    step, plain = make_step(precision="bfloat16"), make_step()
    seen = []
    step.plain_model.get_classifier().register_forward_hook(
        lambda _module, _args, out: seen.append(out.dtype)
    )
    loss, skipped = step(make_batch())
    assert seen == [torch.bfloat16]
    assert (loss.dtype, skipped) == (torch.float32, False)
    assert loss.item() == pytest.approx(plain(make_batch()).loss.item(), rel=0.02)
    assert {parameter.dtype for parameter in step.plain_model.parameters()} == {torch.float32}


def test_a_run_in_bfloat16_learns(shards, tmp_path):
    run(tiny(semantic_softmax(), precision="bfloat16", epochs=4, lr=3e-3), shards, tmp_path)
    curve = losses(tmp_path)
    assert sum(curve[-6:]) < sum(curve[:6])


def test_float16_is_refused_on_a_cpu(shards, tmp_path):
    with pytest.raises(
        UsageError, match=r"precision: expected float32 or bfloat16 on a CPU.*--precision bfloat16"
    ):
        run(tiny(single_label(), precision="float16"), shards, tmp_path)


def test_a_step_that_overflows_in_float16_changes_nothing_but_the_scale():
    step = make_step(precision="float16", ema_decay=0.9, clip_norm=1.0)
    step(make_batch())
    scale, before, average = step.scaler.get_scale(), state(step.plain_model), state(step.ema.module)
    loss, skipped = step(make_batch(scale=1e8))
    assert skipped
    assert not torch.isfinite(loss)
    assert step.scaler.get_scale() == scale / 2
    for name, tensor in step.plain_model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(step.ema.module.state_dict()[name], average[name])
    assert not step(make_batch()).skipped
    assert not torch.equal(step.plain_model.state_dict()["head.fc.weight"], before["head.fc.weight"])


def test_a_step_continues_from_its_state():
    step = make_step(precision="float16", ema_decay=0.9)
    step(make_batch(scale=1e8))
    step(make_batch())
    other = make_step(precision="float16", ema_decay=0.9)
    other.load_state_dict(step.state_dict())
    assert other.scaler.get_scale() == step.scaler.get_scale() == 2.0**15
    for name, tensor in step.ema.module.state_dict().items():
        assert torch.equal(other.ema.module.state_dict()[name], tensor)


def test_skipped_steps_are_counted_and_left_out_of_the_loss(tmp_path):
    log = StepLog(tmp_path / "metrics.csv", 0, 8, 1, 0.0, 0)
    for loss, skipped in ((1.0, False), (float("nan"), True), (3.0, False)):
        log.add(torch.tensor(loss), ["cat_1"], skipped)
    line, _ = log.flush(0, 0.1, 0)
    assert (line.loss, line.skipped, line.step) == (2.0, 1, 3)
    assert log.close_epoch() == 2.0
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        log.add(torch.tensor(float("inf")), ["cat_1"], True)
    with pytest.raises(
        DataError, match="step 22: expected gradients that float16 can hold, found 20 steps in a row"
    ):
        log.add(torch.tensor(float("inf")), ["cat_1"], True)


def test_a_loss_that_is_not_finite_without_an_overflow_is_an_error_still(tmp_path):
    log = StepLog(tmp_path / "metrics.csv", 0, 8, 1, 0.0, 0)
    log.add(torch.tensor(float("nan")), ["cat_1"], False)
    with pytest.raises(DataError, match=r"step 0 .*: expected a finite loss, found nan; .*cat_1"):
        log.flush(0, 0.1, 0)


def test_a_frozen_backbone_stays_as_it_was_with_its_statistics():
    step = make_step("test_resnet", freeze=True)
    before = state(step.plain_model)
    step(make_batch())
    changed = {
        name
        for name, tensor in step.plain_model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"fc.weight", "fc.bias"}


def test_a_frozen_run_leaves_the_backbone_as_it_was_loaded(shards, tmp_path):
    start = timm.create_model("test_resnet", num_classes=11)
    torch.save(start.state_dict(), tmp_path / "weights.pt")
    recipe = tiny(transfer(), freeze=True)
    run(recipe, shards, tmp_path / "out", model="test_resnet", init_from=tmp_path / "weights.pt")
    found = load_checkpoint(tmp_path / "out" / "checkpoint.pt").model
    for name, tensor in start.state_dict().items():
        assert name.startswith("fc.") or torch.equal(found[name], tensor)


def test_a_model_whose_head_timm_does_not_name_cannot_be_frozen():
    with pytest.raises(
        UsageError, match="model mine: expected a classifier to train while the rest is frozen"
    ):
        freeze_backbone(torch.nn.Linear(3, 2), "mine")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_alike_and_its_weights_keep_their_names():
    curves, names = [], []
    for compile in (False, True):
        torch.manual_seed(0)
        # Compiling any of timm's models takes minutes on two cores.
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 8, 8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 6)
        )
        recipe = tiny(single_label(), normalise=True, ema_decay=0.9, accumulate=2)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        step = TrainStep(recipe, network, create_loss(recipe, None), optimizer, compile=compile)
        step.train()
        curves.append([step(make_batch()).loss.item() for _ in range(3)])
        names.append([list(model.state_dict()) for model in (step.plain_model, step.best_model)])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert names[1] == names[0] == [["0.weight", "0.bias", "3.weight", "3.bias"]] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_run_in_mixed_precision_on_a_gpu_learns_and_continues(precision, shards, tmp_path):
    recipe = tiny(
        semantic_softmax(),
        precision=precision,
        epochs=4,
        lr=3e-3,
        ema_decay=0.9,
        schedule="constant",
        warmup=0.0,
    )
    run(dataclasses.replace(recipe, epochs=2), shards, tmp_path, device="cuda:0")
    run(recipe, shards, tmp_path, device="cuda:0", resume=True)
    curve = losses(tmp_path)
    assert sum(curve[-6:]) < sum(curve[:6])
    scaler = load_checkpoint(tmp_path / "checkpoint.pt").scaler
    assert (scaler is not None) == (precision == "float16")
