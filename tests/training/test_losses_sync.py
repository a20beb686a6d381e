"""No loss and no metric reads a tensor back to the host: traced with fake tensors, compiled, and on a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from toy_tree import TOY_PAIRS

from softshard.shards.tree import LabelTree
from softshard.training.average_precision import AncestorPrecision, MeanAveragePrecision
from softshard.training.distillation import SemanticKDLoss, TeacherLevels
from softshard.training.down_the_tree import LeavesDownTheTree
from softshard.training.losses import SemanticSoftmaxLoss, SingleLabelLoss, SoftTargetLoss
from softshard.training.metrics import SemanticAccuracy, TopKAccuracy, TreeDistance
from softshard.training.multi_label import AsymmetricLoss, BinaryCrossEntropyLoss

TREE = LabelTree.from_table(["oak", "animal", "bird", "plant", "vertebrate", "tree", "fish"], TOY_PAIRS)
CLASSES = torch.tensor([0, 3, 6, -1])
VALID = torch.tensor([True, True, True, False])
LEVELS = torch.tensor(TREE.vectors()[CLASSES.clamp(min=0)], dtype=torch.int64).masked_fill(
    ~VALID[:, None], -1
)
# The second row is that of another class: two targets on a level, or on the first level twice the same.
PATHS = torch.stack([LEVELS, LEVELS.flip(0).masked_fill(~VALID[:, None], -1)], dim=1)
STORED = TeacherLevels(torch.zeros(4, 3, dtype=torch.int64), torch.full((4, 3), 0.5, dtype=torch.float16))

LOSSES = {
    "semantic-softmax": (SemanticSoftmaxLoss(TREE), (LEVELS,)),
    "semantic-softmax, classes": (SemanticSoftmaxLoss(TREE, levels=2), (CLASSES,)),
    "semantic-softmax, level order": (SemanticSoftmaxLoss(TREE, level_order=True), (LEVELS,)),
    "single-label": (SingleLabelLoss(), (CLASSES,)),
    "soft-target": (SoftTargetLoss(), (torch.full((4, 7), 1 / 7),)),
    "bce": (BinaryCrossEntropyLoss(TREE), (LEVELS,)),
    "asl": (AsymmetricLoss(TREE), (CLASSES,)),
    "kd": (SemanticKDLoss(TREE), (torch.ones(4, 7), LEVELS)),
    "kd, stored": (SemanticKDLoss(TREE), (STORED, CLASSES)),
    "kd, code": (SemanticKDLoss(TREE, "code"), (torch.ones(4, 7),)),
    "semantic-softmax, paths": (SemanticSoftmaxLoss(TREE), (PATHS,)),
    "bce, paths": (BinaryCrossEntropyLoss(TREE), (PATHS,)),
    "asl, paths": (AsymmetricLoss(TREE), (PATHS,)),
    "kd, paths": (SemanticKDLoss(TREE), (torch.ones(4, 7), PATHS)),
}
METRICS = {
    "semantic": lambda: (SemanticAccuracy(TREE), LEVELS),
    "semantic, paths": lambda: (SemanticAccuracy(TREE), PATHS),
    "down the tree": lambda: (LeavesDownTheTree(TREE), CLASSES),
    "average precision": lambda: (MeanAveragePrecision(7), CLASSES),
    "average precision, bins": lambda: (MeanAveragePrecision(7, bins=16), CLASSES),
    "ancestor precision": lambda: (AncestorPrecision(TREE, 4), PATHS),
    "top-k": lambda: (TopKAccuracy(7, [0, 2, 6]), CLASSES),
    "tree distance": lambda: (TreeDistance(TREE), CLASSES),
}


def moved(value, move):
    if isinstance(value, TeacherLevels):
        return TeacherLevels(*(move(tensor) for tensor in value))
    return move(value)


def run(loss, logits, arguments):
    """As train does: a mean over the valid samples of the global batch, and the gradient."""
    return torch.autograd.grad(loss(logits, *arguments, valid=VALID.to(logits.device)), logits)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_can_be_traced_without_values(name):
    loss, arguments = LOSSES[name]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        arguments = [moved(value, mode.from_tensor) for value in arguments]
        logits = mode.from_tensor(torch.randn(4, 7)).requires_grad_()
        gradient = run(loss, logits, arguments)
    assert gradient.shape == (4, 7)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_can_count_without_values(name):
    metric, targets = METRICS[name]()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        # The counts are changed in place, so they have to be fake too.
        for part in (metric, *getattr(metric, "metrics", ()), getattr(metric, "precision", None)):
            for attribute, value in vars(part or metric).items():
                if isinstance(value, torch.Tensor):
                    setattr(part or metric, attribute, mode.from_tensor(value))
        metric.update(mode.from_tensor(torch.randn(4, 7)), mode.from_tensor(targets), mode.from_tensor(VALID))


@pytest.mark.parametrize(
    "reads", [lambda z: z.sum().item(), lambda z: bool((z > 0).any()), lambda z: float(z.max())]
)
def test_tracing_sees_a_value_that_is_read(reads):
    with FakeTensorMode() as mode, pytest.raises(DataDependentOutputException):
        reads(mode.from_tensor(torch.randn(4, 7)))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_compiles_into_one_graph(name):
    loss, arguments = LOSSES[name]
    logits = torch.randn(4, 7, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda logits, *arguments: loss(logits, *arguments, valid=VALID), fullgraph=True, backend="aot_eager"
    )
    expected = loss(logits, *arguments, valid=VALID)
    found = compiled(logits, *arguments)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_does_not_wait_for_the_gpu(name, dtype):
    loss, arguments = LOSSES[name]
    logits = torch.randn(4, 7).requires_grad_()
    expected = run(loss, logits, arguments)
    on_gpu = loss.to("cuda")
    inputs = [moved(value, lambda tensor: tensor.to("cuda")) for value in arguments]
    gpu_logits, valid = logits.detach().to("cuda", dtype).requires_grad_(), VALID.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradient = torch.autograd.grad(on_gpu(gpu_logits, *inputs, valid=valid), gpu_logits)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        loss.to("cpu")
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(gradient.float().cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_does_not_wait_for_the_gpu(name):
    metric, targets = METRICS[name]()
    expected, _ = METRICS[name]()
    logits = torch.randn(4, 7)
    expected.update(logits, targets, VALID)
    batch = [tensor.to("cuda") for tensor in (logits, targets, VALID)]
    metric.update(*(tensor[:0] for tensor in batch))  # tables move to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    numbers = expected.compute()
    for name, value in metric.compute().items():  # sums of float64 may be taken in another order
        assert value == (pytest.approx(numbers[name]) if isinstance(value, float) else numbers[name]), name
