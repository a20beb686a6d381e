"""Semantic softmax at 11,221 classes: loss and targets, forward and backward, against its peers.

Job: logits [N, 11221] and class indices to the loss and its gradient, with the published fall11 tree of ImageNet-21K-P
(12 levels of 1 to 2,605 classes) and smoothing 0.2, on CPU. Contenders, in the same process and taking turns:

    softshard              SemanticSoftmaxLoss on logits in class order, targets by its table look-up
    softshard level order  the same for a head whose rows are in level order
    level by level         torch's cross-entropy on each level's columns, targets by table look-up: the first try
    published form         as the published code does it: targets in a loop over samples, and on each level a softmax
                           over gathered columns and a one-hot tensor
    cross-entropy          torch's own over all logits, without smoothing: the floor
    smoothed cross-entropy the same with smoothing

What came out is in benchmarks/README.md; read the ratios.

Run: python benchmarks/losses.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import RESULTS, arguments, sweep, write_result
from torch import Tensor
from torch.nn import functional as F

from softshard.loaders.measure import take_turns
from softshard.shards.classes import load_class_list
from softshard.shards.tree import LabelTree
from softshard.training import LevelOrder, SemanticSoftmaxLoss
from softshard.training.losses import semantic_level_weights

SMOOTHING = 0.2

LossOf = Callable[[Tensor, Tensor], Tensor]


def level_by_level(tree: LabelTree) -> LossOf:
    """One torch cross-entropy per level: what this project began with."""
    columns = [torch.tensor(ids) for ids in tree.level_classes]
    vectors = torch.tensor(tree.vectors(), dtype=torch.int64)
    weights = semantic_level_weights(tree.level_sizes)

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        targets = vectors[classes]
        total = logits.new_zeros(len(logits), dtype=torch.float32)
        for level, (ids, weight) in enumerate(zip(columns, weights, strict=True)):
            total = total + weight * F.cross_entropy(
                logits[:, ids].float(),
                targets[:, level],
                ignore_index=-1,
                reduction="none",
                label_smoothing=SMOOTHING,
            )
        return total.mean()

    return loss


def published_form(tree: LabelTree) -> LossOf:
    """The steps of the published code (Ridnik et al. 2021), one after the other."""
    columns = [torch.tensor(ids) for ids in tree.level_classes]
    parents = tree.parents.tolist()
    weights = semantic_level_weights(tree.level_sizes)
    chains: list[list[int]] = []
    for node in range(len(parents)):
        chain = [node]
        while (above := parents[chain[-1]]) >= 0:
            chain.append(above)
        chains.append(chain[::-1])

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        targets = torch.full((len(classes), len(columns)), -1)
        for sample, node in enumerate(classes):
            for level, ancestor in enumerate(chains[node]):
                targets[sample, level] = torch.where(columns[level] == ancestor)[0]
        total = torch.zeros(())
        for level, ids in enumerate(columns):
            log_shares = F.log_softmax(logits[:, ids].float(), dim=1)
            target = targets[:, level]
            wanted = torch.zeros_like(log_shares).scatter_(1, target.clamp(min=0)[:, None], 1.0)
            wanted.mul_(1 - SMOOTHING).add_(SMOOTHING / len(ids))
            losses = -(wanted * log_shares) * (target >= 0)[:, None]
            total = total + weights[level] * losses.sum(dim=1).mean()
        return total

    return loss


def batches(loss: LossOf, logits: Tensor, classes: Tensor) -> Iterator[int]:
    """Loss and gradient of the same batch, again and again."""
    while True:
        logits.grad = None
        loss(logits, classes).backward()
        yield len(logits)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(repeats=25, steps=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tree = LabelTree.from_wordnet(load_class_list("imagenet-21k-p-fall11"), parents="published")
    order = LevelOrder(tree)
    semantic, ordered = (
        SemanticSoftmaxLoss(tree, SMOOTHING),
        SemanticSoftmaxLoss(tree, SMOOTHING, level_order=True),
    )
    by_level, published = level_by_level(tree), published_form(tree)

    def run(batch_size: int, dtype: str) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(batch_size, len(tree.classes), generator=generator).to(getattr(torch, dtype))
        classes = torch.randint(0, len(tree.classes), (batch_size,), generator=generator)
        logits = values.clone().requires_grad_()
        level_logits = order.to_level_order(values, dim=1).requires_grad_()
        contenders: dict[str, tuple[LossOf, Tensor]] = {
            "softshard": (semantic, logits),
            "softshard level order": (ordered, level_logits),
            "level by level": (by_level, logits),
            "published form": (published, logits),
            "cross-entropy": (lambda logits, classes: F.cross_entropy(logits.float(), classes), logits),
            "smoothed cross-entropy": (
                lambda logits, classes: F.cross_entropy(logits.float(), classes, label_smoothing=SMOOTHING),
                logits,
            ),
        }
        for name in ("softshard", "softshard level order", "level by level"):  # one job
            loss, inputs = contenders[name]
            torch.testing.assert_close(
                loss(inputs, classes), published(logits, classes), rtol=1e-4, atol=1e-4
            )
        results = take_turns(
            {
                name: lambda loss=loss, inputs=inputs: batches(loss, inputs, classes)
                for name, (loss, inputs) in contenders.items()
            },
            warmup=2,
            steps=args.steps,
            repeats=args.repeats,
        )
        milliseconds = {name: 1000 * batch_size / result.median for name, result in results.items()}
        ours, level_order = milliseconds["softshard"], milliseconds["softshard level order"]
        return {
            "ms": {name: round(value, 2) for name, value in milliseconds.items()},
            "results": {name: result.to_json() for name, result in results.items()},
            "times_faster_than_published": round(milliseconds["published form"] / ours, 2),
            "times_faster_than_level_by_level": round(milliseconds["level by level"] / ours, 2),
            "times_cross_entropy": round(ours / milliseconds["cross-entropy"], 2),
            "times_cross_entropy_in_level_order": round(level_order / milliseconds["cross-entropy"], 2),
        }

    swept = {"batch_size": [64, 256], "dtype": ["float32", "bfloat16"]}
    write_result(
        args.out or RESULTS / "losses.json",
        benchmark="losses",
        job="semantic softmax with targets from class indices, forward and backward, 11,221 classes on 12 levels",
        swept=swept,
        rows=sweep(swept, run),
        threads=args.threads,
        steps=args.steps,
    )


if __name__ == "__main__":
    main()
