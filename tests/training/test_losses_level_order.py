"""Heads and logits in level order: the same losses and gradients, and a way back."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from tree_losses import every_loss

from softshard.shards.errors import UsageError
from softshard.shards.tree import LabelTree
from softshard.training.level_layout import LevelLayout, LevelOrder
from softshard.training.losses import SemanticSoftmaxLoss


def random_tree(num_classes=40, levels=None, seed=0):
    """A forest whose levels are scattered over the class indices."""
    rng = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(num_classes)]
    shuffled = rng.permutation(num_classes)
    pairs = [
        (names[shuffled[i]], names[shuffled[rng.integers(0, i)]] if i >= 3 else "")
        for i in range(num_classes)
    ]
    return LabelTree.from_table(names, pairs, levels=levels)


TREES = [pytest.param(random_tree(), id="whole"), pytest.param(random_tree(levels=2), id="cut")]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("levels", [1, None])
@pytest.mark.parametrize("name", ["semantic-softmax", "bce", "asl", "kd"])
def test_level_order_changes_neither_loss_nor_gradient(tree, levels, name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 40, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = [torch.randn(6, 40, generator=generator)] if name == "kd" else []
    classes = torch.tensor([0, 5, 17, 39, -1, 22])
    plain = every_loss(tree, levels=levels)[name](logits, *teacher, classes)
    ordered_logits = LevelOrder(tree).to_level_order(logits, dim=1)
    ordered = every_loss(tree, levels=levels, level_order=True)[name](ordered_logits, *teacher, classes)
    torch.testing.assert_close(ordered, plain, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (plain, ordered)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=0)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("tree", TREES)
def test_a_level_is_a_slice_of_level_order_and_the_cut_ones_stand_last(tree):
    order = LevelOrder(tree).order
    assert sorted(order.tolist()) == list(range(40))
    start = 0
    for ids in tree.level_classes:
        assert order[start : start + len(ids)].tolist() == ids.tolist()
        start += len(ids)
    rest = order[start:].tolist()
    assert rest == sorted(rest)
    assert all(tree.levels[i] >= tree.num_levels for i in rest)


@pytest.mark.parametrize("head", [nn.Linear(5, 40), nn.Conv2d(5, 40, 1), nn.Linear(5, 40, bias=False)])
def test_a_head_goes_to_level_order_and_back(head):
    tree = random_tree()
    order = LevelOrder(tree)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    parameters = list(head.parameters())
    shape = (3, 5, 1, 1) if isinstance(head, nn.Conv2d) else (3, 5)
    features = torch.randn(shape)
    logits = head(features).detach()
    order.permute_(head)
    torch.testing.assert_close(head(features).detach(), order.to_level_order(logits, dim=1))
    exported = {name: order.to_class_order(tensor) for name, tensor in head.state_dict().items()}
    order.restore_(head)
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(exported[name], before[name])
    # The optimizer knows the parameters by identity.
    assert all(now is then for now, then in zip(head.parameters(), parameters, strict=True))


def test_a_model_trained_in_level_order_is_the_model_trained_in_class_order():
    tree = random_tree()
    order = LevelOrder(tree)
    images, classes = torch.randn(8, 3, 32, 32), torch.arange(8) * 5
    models = []
    for level_order in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet.r160_in1k", num_classes=40)
        if level_order:
            order.permute_(model.get_classifier())
        loss = SemanticSoftmaxLoss(tree, level_order=level_order)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            loss(model(images), classes).backward()
            optimizer.step()
        if level_order:
            order.restore_(model.get_classifier())
        models.append(model)
    for plain, ordered in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(ordered, plain, rtol=1e-3, atol=1e-4)


def test_metrics_take_logits_back_in_class_order():
    order = LevelOrder(random_tree())
    logits = torch.randn(4, 40)
    assert torch.equal(order.to_class_order(order.to_level_order(logits, dim=1), dim=1), logits)


def test_columns_without_a_level_are_left_alone():
    # Only level_classes are known, and the logits are wider than their highest class.
    logits = torch.randn(3, 9, requires_grad=True)
    SemanticSoftmaxLoss([[0, 4], [2, 5]])(logits, torch.tensor([[0, 1], [1, -1], [1, 0]])).backward()
    assert (logits.grad[:, [1, 3, 6, 7, 8]] == 0).all()
    assert (logits.grad[:, [0, 4]] != 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda order: order.permute_(nn.Linear(5, 41)),
            r"whose parameters have 40 rows, found weight \(41, 5\)",
        ),
        (lambda order: order.permute_(nn.ReLU()), "found none"),
        (
            lambda order: order.to_level_order(torch.zeros(3, 39), dim=1),
            r"expected 40 classes in dimension 1",
        ),
        (lambda order: LevelLayout(random_tree(), levels=99), "expected levels between 1 and"),
        (lambda order: LevelLayout(None), "expected a label tree, found None"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, message):
    with pytest.raises(UsageError, match=message):
        call(LevelOrder(random_tree()))
