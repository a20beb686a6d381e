"""Losses of keywords and label weights: hand-worked values, torch's own cross-entropy, gradients, half precision."""

import pytest
import torch
from torch.nn import functional as F

from softshard.loaders import SparseTargets
from softshard.shards.errors import UsageError
from softshard.training import JointLoss, LabelWeightedLoss, WeaklyTaggedLoss
from softshard.training import weighted_softmax as module

TOY_LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
TOY_TAGS = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
TOY_WEIGHTS = torch.tensor([[1.0, 0.0, 0.4, 0.0]], dtype=torch.float64)


def as_sparse(targets, num_kept, padding_id=-1):
    values, ids = targets.topk(num_kept, dim=1)
    return SparseTargets(values, ids.masked_fill(values == 0, padding_id))


def naive(logits, targets):
    """The definition: one cross-entropy for each target of each image."""
    rows = []
    for i in range(len(logits)):
        terms = [
            targets[i, t] * F.cross_entropy(logits[i : i + 1], torch.tensor([t]))
            for t in targets[i].nonzero().flatten().tolist()
        ]
        rows.append(sum(terms, logits[i].sum() * 0))
    return torch.stack(rows)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 11, generator=generator, dtype=torch.float64) * 3
    targets = torch.rand(7, 11, generator=generator, dtype=torch.float64)
    targets = targets.masked_fill(targets < 0.7, 0.0)
    targets[3] = 0.0  # an image with no keyword at all
    return logits, targets


@pytest.mark.parametrize("sparse", [False, True])
def test_losses_keep_the_values_of_a_small_example(sparse):
    def form(targets):
        return as_sparse(targets, 3) if sparse else targets

    assert f"{WeaklyTaggedLoss()(TOY_LOGITS, form(TOY_TAGS)):.10f}" == "2.8803793971"
    assert f"{LabelWeightedLoss()(TOY_LOGITS, form(TOY_WEIGHTS)):.10f}" == "1.4162655780"


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("sparse", [False, True])
def test_values_and_gradients_equal_one_cross_entropy_for_each_target(drawn, sparse, rows, monkeypatch):
    monkeypatch.setattr(module, "_PIECE_CPU", rows * 11)
    logits, targets = drawn
    plain, own = (logits.clone().requires_grad_() for _ in range(2))
    expected = naive(plain, targets)
    found = LabelWeightedLoss().per_sample(own, as_sparse(targets, 11) if sparse else targets)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert plain.grad is not None
    assert own.grad is not None
    assert torch.allclose(own.grad, plain.grad, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda logits: LabelWeightedLoss().per_sample(logits, targets), logits.clone().requires_grad_()
    )


def test_an_image_without_targets_adds_nothing_and_is_counted(drawn):
    logits, targets = drawn
    logits.requires_grad_()
    losses = LabelWeightedLoss().per_sample(logits, targets)
    assert losses[3] == 0
    mean = LabelWeightedLoss()(logits, targets)
    assert mean == losses.sum() / 7
    mean.backward()
    assert logits.grad is not None
    assert not logits.grad[3].any()
    assert logits.grad[2].any()


def test_slots_that_are_not_valid_count_for_nothing(drawn):
    logits, targets = drawn
    valid = torch.tensor([True, False, True, True, False, True, True])
    found = LabelWeightedLoss()(logits, targets, valid)
    assert torch.isclose(found, LabelWeightedLoss()(logits[valid], targets[valid]))
    assert torch.isclose(LabelWeightedLoss()(logits, targets, valid, num_valid=10), found / 2)


def test_one_target_of_weight_one_is_the_usual_cross_entropy(drawn):
    logits, _ = drawn
    classes = torch.arange(7)
    found = WeaklyTaggedLoss()(logits, SparseTargets(torch.ones(7, 1), classes[:, None]))
    assert torch.isclose(found, F.cross_entropy(logits, classes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sparse", [False, True])
def test_half_precision_is_computed_in_float32(dtype, sparse):
    generator = torch.Generator().manual_seed(1)
    half = (torch.randn(4, 40_000, generator=generator) * 5).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    targets = torch.zeros(4, 40_000).scatter_(1, torch.randint(40_000, (4, 5), generator=generator), 1.0)
    form = as_sparse(targets, 6) if sparse else targets
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = WeaklyTaggedLoss()(half, form)
    expected = WeaklyTaggedLoss()(full, form)
    assert found.dtype == torch.float32
    assert found == expected
    found.backward()
    expected.backward()
    assert half.grad is not None
    assert full.grad is not None
    assert half.grad.dtype == dtype
    assert torch.equal(half.grad, full.grad.to(dtype))


def test_logits_of_any_size_are_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = WeaklyTaggedLoss()(logits, torch.tensor([[0.0, 1.0, 1.0]]))
    assert loss.item() == pytest.approx(3e4)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[2.0, -1.0, -1.0]]


@pytest.mark.parametrize("sparse", [False, True])
def test_the_joint_loss_is_the_sum_of_both(drawn, sparse):
    logits, targets = drawn
    weights, tags = targets[:, :4], (targets[:, 4:] > 0).double()
    form = (as_sparse(weights, 4), as_sparse(tags, 7)) if sparse else (weights, tags)
    valid = torch.arange(7) < 6
    own, plain = (logits.clone().requires_grad_() for _ in range(2))
    found = JointLoss(4, tag_weight=0.5)(own, form, valid)
    expected = LabelWeightedLoss()(plain[:, :4], weights, valid)
    expected = expected + 0.5 * WeaklyTaggedLoss()(plain[:, 4:], tags, valid)
    assert torch.isclose(found, expected)
    found.backward()
    expected.backward()
    assert own.grad is not None
    assert plain.grad is not None
    assert torch.allclose(own.grad, plain.grad)


@pytest.mark.parametrize(
    "targets",
    [
        torch.zeros(7, 10),
        SparseTargets(torch.zeros(6, 2), torch.zeros(6, 2, dtype=torch.int64)),
        SparseTargets(torch.zeros(7, 2), torch.zeros(7, 3, dtype=torch.int64)),
    ],
)
def test_targets_for_other_classes_are_refused(drawn, targets):
    with pytest.raises(UsageError, match=r"LabelWeightedLoss: expected logits .* another class list"):
        LabelWeightedLoss()(drawn[0], targets)
    with pytest.raises(UsageError, match="JointLoss: expected logits of 11 classes and some keywords"):
        JointLoss(11)(drawn[0], (targets, targets))


@pytest.mark.parametrize("sparse", [False, True])
def test_nothing_of_the_logits_shape_is_kept_for_the_backward_pass(sparse):
    logits = torch.randn(4, 35_000, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(4, 35_000).scatter_(1, torch.arange(12).view(4, 3), 1.0)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        WeaklyTaggedLoss()(logits, as_sparse(targets, 5) if sparse else targets)
    own = {logits.data_ptr(), targets.data_ptr()}
    large = [tensor for tensor in kept if tensor.numel() >= logits.numel()]
    assert len(large) == (1 if sparse else 2)
    assert {tensor.data_ptr() for tensor in large} <= own
