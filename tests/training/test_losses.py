"""The losses against hand-worked values, a loop over samples and torch's own cross-entropy."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from softshard.shards.errors import UsageError
from softshard.shards.tree import LabelTree
from softshard.training.losses import (
    SemanticSoftmaxLoss,
    SingleLabelLoss,
    SoftTargetLoss,
    semantic_level_weights,
)

# Classes 0 animal, 1 vertebrate, 2 bird, 3 fish, 4 plant, 5 tree, 6 oak.
TOY_LEVELS = [[0, 4], [1, 5], [2, 3, 6]]
TOY_LOGITS = torch.tensor(
    [[1, 2, 3, 0, -1, 0.5, 0.25], [0, 0, 0, 0, 1, 1, 2], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]],
    dtype=torch.float64,
)
TOY_TARGETS = torch.tensor([[0, 0, 0], [1, -1, -1], [1, 1, -1]])  # bird, plant, tree


def slow_semantic_softmax(logits, levels, level_classes, smoothing, clamp, num_levels):
    """The definition, one sample and one level at a time, in Python."""
    sizes = [len(ids) for ids in level_classes]
    total = 0.0
    for sample in range(len(logits)):
        for level in range(num_levels):
            target = int(levels[sample, level])
            if target < 0:
                continue
            weight = sum(sizes) / sum(sizes[level:])
            weight = weight if clamp is None else min(weight, clamp)
            scores = [logits[sample, i] for i in level_classes[level]]
            log_sum = torch.logsumexp(torch.stack(scores), dim=0)
            for i, score in enumerate(scores):
                share = smoothing / sizes[level] + (1 - smoothing if i == target else 0)
                total = total - weight * share * (score - log_sum)
    return total / len(logits)


@pytest.mark.parametrize(
    ("smoothing", "levels", "expected"),
    [(0.0, 2, 0.6511349645), (0.2, 2, 0.8531349645), (0.0, None, 0.7349025728), (0.2, None, 1.2350507210)],
)
def test_toy_tree_gives_the_values_worked_out_by_hand(smoothing, levels, expected):
    loss = SemanticSoftmaxLoss(TOY_LEVELS, smoothing=smoothing, levels=levels)
    assert f"{loss(TOY_LOGITS, TOY_TARGETS).item():.10f}" == f"{expected:.10f}"


def test_level_weights_count_the_levels_that_are_not_trained():
    assert SemanticSoftmaxLoss(TOY_LEVELS, levels=2).level_weights == (1.0, 7 / 5)


def test_level_weights_stop_at_the_clamp():
    sizes = [302, 1378, 2100, 2605, 2204, 1371, 716, 290, 146, 82, 26, 1]
    tails = [11221, 10919, 9541, 7441, 4836, 2632, 1261, 545, 255, 109, 27, 1]
    assert semantic_level_weights(sizes, None) == tuple(11221 / tail for tail in tails)
    assert semantic_level_weights(sizes) == tuple(min(20.0, 11221 / tail) for tail in tails)


def test_level_weights_of_the_published_fall11_tree():
    from softshard.shards.classes import load_class_list
    from softshard.shards.tree import LabelTree

    tree = LabelTree.from_wordnet(load_class_list("imagenet-21k-p-fall11"), parents="published")
    tails = [11221, 10919, 9541, 7441, 4836, 2632, 1261, 545, 255, 109, 27, 1]
    loss = SemanticSoftmaxLoss(tree, clamp=None, levels=11)
    assert loss.level_weights == tuple(11221 / tail for tail in tails[:11])


@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize("num_levels", [1, 3, 4])
def test_semantic_softmax_and_its_gradient_equal_a_loop_over_samples(clamp, num_levels):
    rng = np.random.default_rng(0)
    level_classes = np.split(rng.permutation(30), [3, 12, 26])
    level_classes = [np.sort(ids) for ids in level_classes]
    logits = torch.tensor(rng.normal(size=(9, 30)), requires_grad=True)
    levels = torch.tensor(np.stack([rng.integers(-1, len(ids), size=9) for ids in level_classes], axis=1))
    fast = SemanticSoftmaxLoss(level_classes, smoothing=0.1, clamp=clamp, levels=num_levels)(logits, levels)
    slow = slow_semantic_softmax(logits, levels, level_classes, 0.1, clamp, num_levels)
    (fast_gradient,) = torch.autograd.grad(fast, logits)
    (slow_gradient,) = torch.autograd.grad(slow, logits)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-10, atol=1e-14)


def toy_tree(levels=None):
    pairs = [("vertebrate", "animal"), ("bird", "vertebrate"), ("fish", "vertebrate"), ("tree", "plant")]
    classes = ["animal", "vertebrate", "bird", "fish", "plant", "tree", "oak"]
    return LabelTree.from_table(classes, [*pairs, ("oak", "tree")], levels=levels)


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.0}, {"levels": 2}, {"clamp": None}])
def test_class_indices_stand_for_their_levels(options):
    loss = SemanticSoftmaxLoss(toy_tree(), **options)
    by_class = loss(TOY_LOGITS, torch.tensor([2, 4, 5]))
    assert torch.equal(by_class, loss(TOY_LOGITS, TOY_TARGETS))


def test_a_padded_class_index_has_no_level():
    loss = SemanticSoftmaxLoss(toy_tree())
    padded = loss(TOY_LOGITS, torch.tensor([2, -1, 5]))
    assert torch.equal(padded, loss(TOY_LOGITS, torch.tensor([[0, 0, 0], [-1, -1, -1], [1, 1, -1]])))


def test_classes_below_a_cut_have_no_gradient():
    logits = TOY_LOGITS.clone().requires_grad_()
    loss = SemanticSoftmaxLoss(toy_tree(levels=2))
    assert loss.level_weights == (1.0, 7 / 5)  # the level below the cut is counted
    loss(logits, TOY_TARGETS[:, :2]).backward()
    assert (logits.grad[:, [2, 3, 6]] == 0).all()
    assert (logits.grad[:, [0, 1, 4, 5]] != 0).any(dim=0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("levels", [2, None])
def test_the_written_out_gradient_is_that_of_the_loss(smoothing, levels):
    loss = SemanticSoftmaxLoss(toy_tree(), smoothing=smoothing, levels=levels)
    logits = TOY_LOGITS.clone().requires_grad_()
    valid = torch.tensor([True, True, False])
    assert torch.autograd.gradcheck(lambda z: loss(z, TOY_TARGETS), logits)
    assert torch.autograd.gradcheck(lambda z: loss(z, TOY_TARGETS, valid), logits)


def test_a_second_derivative_is_refused():
    logits = TOY_LOGITS.clone().requires_grad_()
    loss = SemanticSoftmaxLoss(TOY_LEVELS)(logits, TOY_TARGETS)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_backward_twice_gives_the_same_gradient():
    logits = TOY_LOGITS.clone().requires_grad_()
    loss = SemanticSoftmaxLoss(TOY_LEVELS)(logits, TOY_TARGETS)
    first = torch.autograd.grad(loss, logits, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, logits)[0])


def test_levels_far_apart_neither_overflow_nor_vanish():
    # float32 holds exp of -87 to 88: one maximum for all levels would lose the lower ones.
    logits = TOY_LOGITS.float()
    shifted = logits + torch.tensor([0.0, 300, -300, -300, 0, 300, -300])
    loss = SemanticSoftmaxLoss(TOY_LEVELS)
    torch.testing.assert_close(loss(shifted, TOY_TARGETS), loss(logits, TOY_TARGETS), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_gradient_has_the_dtype_of_the_logits(dtype):
    logits = TOY_LOGITS.to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    for values in (logits, exact):
        SemanticSoftmaxLoss(TOY_LEVELS)(values, TOY_TARGETS).backward()
    assert logits.grad.dtype == dtype
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6}[dtype]
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance / 10)


def test_a_loss_turned_to_half_precision_keeps_its_weights():
    loss = SemanticSoftmaxLoss(TOY_LEVELS).half()
    assert f"{loss(TOY_LOGITS, TOY_TARGETS).item():.10f}" == "1.2350507210"


def test_levels_of_many_images_weigh_less():
    counts = [40, 20, 10, 0, 10, 10, 10]  # animal, vertebrate, bird, fish, plant, tree, oak
    loss = SemanticSoftmaxLoss(toy_tree(), balance="images", class_counts=counts)
    assert loss.level_weights == (1.0, 100 / 50, 100 / 20)
    cut = SemanticSoftmaxLoss(toy_tree(levels=2), balance="images", class_counts=counts)
    assert cut.level_weights == (1.0, 100 / 50)
    known_levels = SemanticSoftmaxLoss(TOY_LEVELS, balance="images", class_counts=counts)
    assert known_levels.level_weights == loss.level_weights


def test_a_level_without_images_weighs_as_much_as_the_clamp():
    assert semantic_level_weights([5, 5, 0]) == (1.0, 2.0, 20.0)
    with pytest.raises(UsageError, match=r"at least one class on every level .*without a clamp.*\[5, 5, 0\]"):
        semantic_level_weights([5, 5, 0], None)


def test_a_flat_tree_is_plain_softmax():
    logits, classes = torch.randn(5, 8), torch.tensor([0, 7, 3, 3, 1])
    semantic = SemanticSoftmaxLoss([range(8)], smoothing=0.2)(logits, classes[:, None])
    torch.testing.assert_close(semantic, SingleLabelLoss(0.2)(logits, classes))


def test_log_softmax_runs_in_float32_under_autocast():
    logits = (TOY_LOGITS * 30).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SemanticSoftmaxLoss(TOY_LEVELS)(logits, TOY_TARGETS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), SemanticSoftmaxLoss(TOY_LEVELS)(logits.double(), TOY_TARGETS))


def test_single_label_loss_is_smoothed_cross_entropy():
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = F.cross_entropy(logits, classes, label_smoothing=0.2)
    torch.testing.assert_close(SingleLabelLoss()(logits, classes), expected)


def test_soft_targets_of_one_class_are_plain_cross_entropy():
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = F.one_hot(classes, 4).float()
    torch.testing.assert_close(SoftTargetLoss()(logits, targets), F.cross_entropy(logits, classes))


def every_loss():
    classes = torch.tensor([0, 3, 6, 2])
    levels = torch.tensor([[0, -1, -1], [0, 0, 1], [1, 1, 2], [0, 0, 0]])
    return [
        pytest.param(SemanticSoftmaxLoss(TOY_LEVELS), levels, id="semantic-softmax"),
        pytest.param(SingleLabelLoss(), classes, id="single-label"),
        pytest.param(SoftTargetLoss(), torch.eye(7)[classes], id="soft-target"),
    ]


@pytest.mark.parametrize(("loss", "targets"), every_loss())
def test_invalid_samples_change_neither_the_loss_nor_the_gradient(loss, targets):
    logits = torch.randn(4, 7, requires_grad=True)
    masked = loss(logits, targets, torch.tensor([True, False, True, False]))
    alone = loss(logits[[0, 2]], targets[[0, 2]])
    torch.testing.assert_close(masked, alone)
    (gradient,) = torch.autograd.grad(masked, logits)
    assert gradient[[1, 3]].abs().max() == 0


@pytest.mark.parametrize(("loss", "targets"), every_loss())
def test_a_batch_of_padding_has_loss_zero(loss, targets):
    # As the loader pads: class and levels -1, soft targets all zero.
    padding = torch.zeros_like(targets) if targets.is_floating_point() else torch.full_like(targets, -1)
    assert loss(torch.randn(4, 7), padding, torch.zeros(4, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize(("loss", "targets"), every_loss())
def test_uneven_ranks_average_to_the_loss_of_the_global_batch(loss, targets):
    logits = torch.randn(4, 7)
    valid = torch.tensor([True, True, True, False])
    ranks = [
        2 * loss(logits[part], targets[part], valid[part], valid.sum()) for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(ranks) / 2, loss(logits[:3], targets[:3]))


def test_losses_have_nothing_in_their_state_dict():
    assert not SemanticSoftmaxLoss(TOY_LEVELS).state_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SemanticSoftmaxLoss(TOY_LEVELS, levels=4), "expected levels between 1 and 3"),
        (lambda: SemanticSoftmaxLoss(TOY_LEVELS, smoothing=1.0), r"expected a number in \[0, 1\), found 1.0"),
        (lambda: SemanticSoftmaxLoss(TOY_LEVELS)(TOY_LOGITS, TOY_TARGETS[:, :2]), r"found \(3, 2\)"),
        (
            lambda: SoftTargetLoss()(TOY_LOGITS, torch.ones(3, 6)),
            r"expected targets \(3, 7\), found \(3, 6\)",
        ),
        (lambda: semantic_level_weights([]), "at least one class on every level"),
        (lambda: SemanticSoftmaxLoss(TOY_LEVELS, balance="pixels"), "balance: expected one of"),
        (lambda: SemanticSoftmaxLoss(TOY_LEVELS, balance="images"), "class_counts: expected with"),
        (lambda: SemanticSoftmaxLoss(TOY_LEVELS, class_counts=[1] * 7), "found some with 'classes'"),
        (
            lambda: SemanticSoftmaxLoss(TOY_LEVELS, balance="images", class_counts=[1] * 6),
            r"expected 7 numbers of images, found \[6\]",
        ),
        (lambda: SemanticSoftmaxLoss([[0, 1], [1, 2]]), "a class on two"),
        (
            lambda: SemanticSoftmaxLoss(toy_tree())(torch.ones(3, 8), TOY_TARGETS),
            r"expected logits \[N, 7\], found \(3, 8\); the model was built for another class list",
        ),
        (lambda: SemanticSoftmaxLoss(TOY_LEVELS)(TOY_LOGITS, TOY_TARGETS[:, 0]), "classes need a LabelTree"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_deep_levels_weigh_by_the_share_of_classes_that_reach_them():
    assert math.isclose(SemanticSoftmaxLoss(TOY_LEVELS).level_weights[2], 7 / 3)


def test_a_data_set_without_a_tree_is_refused_with_what_to_run():
    with pytest.raises(UsageError, match=r"expected a label tree, found None.*softshard pack --tree"):
        SemanticSoftmaxLoss(None)
