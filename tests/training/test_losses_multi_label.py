"""Multi-label losses against loops over samples, torch and timm."""

import math

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch.nn import functional as F
from toy_tree import TOY_PAIRS

from softshard.shards.errors import UsageError
from softshard.shards.tree import LabelTree
from softshard.training.level_layout import LevelLayout
from softshard.training.multi_label import AsymmetricLoss, BinaryCrossEntropyLoss, multi_label_targets

CLASSES = ["oak", "animal", "bird", "plant", "vertebrate", "tree", "fish"]
TREE = LabelTree.from_table(CLASSES, TOY_PAIRS)
LABELS = torch.tensor([CLASSES.index(name) for name in ("bird", "plant", "oak", "tree", "fish")])
RIGHT = [
    {"bird", "vertebrate", "animal"},
    {"plant"},
    {"oak", "tree", "plant"},
    {"tree", "plant"},
    {"fish", "vertebrate", "animal"},
]
MULTI_HOT = torch.tensor([[float(name in right) for name in CLASSES] for right in RIGHT], dtype=torch.float64)


def random_logits(dtype=torch.float64):
    return (3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)


def slow_bce(logit, is_right):
    return math.log1p(math.exp(-logit if is_right else logit))


def slow_asl(logit, is_right, gamma_neg=4.0, gamma_pos=1.0, clip=0.05):
    p = 1 / (1 + math.exp(-logit))
    if is_right:
        return -((1 - p) ** gamma_pos) * math.log(max(p, 1e-8))
    q = max(p - clip, 0.0)
    return -(q**gamma_neg) * math.log(max(1 - q, 1e-8))


def slow_mean(logits, slow):
    total = 0.0
    for sample, right in enumerate(RIGHT):
        for column, name in enumerate(CLASSES):
            total += slow(float(logits[sample, column]), name in right)
    return total / len(logits)


@pytest.mark.parametrize("make", [BinaryCrossEntropyLoss, AsymmetricLoss])
def test_class_indices_and_levels_say_the_same(make):
    loss = make(TREE)
    levels = torch.tensor(TREE.vectors()[LABELS], dtype=torch.int64)
    assert torch.equal(loss(random_logits(), LABELS), loss(random_logits(), levels))


def test_targets_are_the_label_and_its_ancestors():
    layout = LevelLayout(TREE)
    arranged = multi_label_targets(layout.targets(LABELS), layout, torch.float64)
    assert torch.equal(arranged, layout.arrange(MULTI_HOT))


@pytest.mark.parametrize(
    ("make", "slow"), [(BinaryCrossEntropyLoss, slow_bce), (AsymmetricLoss, slow_asl)], ids=["bce", "asl"]
)
def test_the_loss_equals_a_loop_over_samples_and_classes(make, slow):
    logits = random_logits()
    assert make(TREE)(logits, LABELS).item() == pytest.approx(slow_mean(logits, slow), rel=1e-12)


def test_bce_and_its_gradient_are_torchs():
    ours, theirs = (random_logits().requires_grad_() for _ in range(2))
    BinaryCrossEntropyLoss(TREE, class_mean=True)(ours, LABELS).backward()
    F.binary_cross_entropy_with_logits(theirs, MULTI_HOT).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("focus_gradient", [False, True])
@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), [(4, 1, 0.05), (2, 0, 0.0), (1, 3, 0.2)])
def test_asl_and_its_gradient_are_timms(focus_gradient, gamma_neg, gamma_pos, clip):
    options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    ours, theirs = (random_logits(torch.float32).requires_grad_() for _ in range(2))
    loss = AsymmetricLoss(TREE, focus_gradient=focus_gradient, **options)(ours, LABELS)
    timms = AsymmetricLossMultiLabel(disable_torch_grad_focal_loss=not focus_gradient, **options)
    # One at a time: of a batch older timms take the sum, later ones the mean.
    expected = torch.stack(list(map(timms, theirs.split(1), MULTI_HOT.float().split(1)))).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", [BinaryCrossEntropyLoss(TREE), AsymmetricLoss(TREE, focus_gradient=True)])
def test_gradients_are_those_of_the_loss(loss):
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), random_logits().requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
def test_asl_of_sure_answers_has_a_finite_gradient(gamma):
    logits = torch.tensor([[100.0] * 7, [-100.0] * 7], requires_grad=True)
    loss = AsymmetricLoss(TREE, gamma_neg=gamma, gamma_pos=gamma, focus_gradient=True)
    loss(logits, LABELS[:2]).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("make", [BinaryCrossEntropyLoss, AsymmetricLoss])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32_also_under_autocast(make, dtype):
    logits = random_logits(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make(TREE)(logits, LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, make(TREE)(logits.float(), LABELS))
    loss.backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("make", [BinaryCrossEntropyLoss, AsymmetricLoss])
def test_invalid_and_unlabelled_samples_change_neither_the_loss_nor_the_gradient(make):
    logits = random_logits().requires_grad_()
    labels = torch.where(torch.arange(5) == 4, -1, LABELS)
    valid = torch.tensor([True, True, False, True, False])
    loss = make(TREE)(logits, labels, valid)
    torch.testing.assert_close(loss, make(TREE)(logits[[0, 1, 3]], LABELS[[0, 1, 3]]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[[2, 4]].abs().max() == 0
    unlabelled = make(TREE)(logits[3:], labels[3:])
    torch.testing.assert_close(2 * unlabelled, make(TREE)(logits[3:4], labels[3:4]))


@pytest.mark.parametrize("make", [BinaryCrossEntropyLoss, AsymmetricLoss])
def test_a_batch_of_padding_has_loss_zero(make):
    assert make(TREE)(torch.randn(2, 7), torch.full((2, 3), -1), torch.zeros(2).bool()).item() == 0


@pytest.mark.parametrize("make", [BinaryCrossEntropyLoss, AsymmetricLoss])
def test_uneven_ranks_average_to_the_loss_of_the_global_batch(make):
    logits, valid = random_logits(), torch.tensor([True, True, True, True, False])
    parts = (slice(0, 2), slice(2, 5))
    ranks = [2 * make(TREE)(logits[part], LABELS[part], valid[part], valid.sum()) for part in parts]
    torch.testing.assert_close(sum(ranks) / 2, make(TREE)(logits[:4], LABELS[:4]))


@pytest.mark.parametrize("wrong", [{"gamma_neg": -1.0}, {"gamma_pos": math.inf}, {"clip": 1.0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(UsageError, match=r"gamma_pos of 0 or more and clip in \[0, 1\)"):
        AsymmetricLoss(TREE, **wrong)


def test_a_data_set_without_a_tree_is_refused_by_the_losss_own_name():
    with pytest.raises(UsageError, match="AsymmetricLoss: expected a label tree, found None"):
        AsymmetricLoss(None)
