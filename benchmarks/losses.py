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

Ratios are given by the wall clock and by CPU time. With one thread, CPU time hardly notices what else the machine does;
with more, an operation waits for its slowest thread, and a busy machine costs those most that have many operations.

Run: python benchmarks/losses.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import arguments, sweep, write_result
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
    parser.add_argument("--batch-size", type=int, default=256)
    parser.set_defaults(repeats=15, steps=2)
    args = parser.parse_args()
    batch_size = args.batch_size
    tree = LabelTree.from_wordnet(load_class_list("imagenet-21k-p-fall11"), parents="published")
    order = LevelOrder(tree)
    semantic, ordered = (
        SemanticSoftmaxLoss(tree, SMOOTHING),
        SemanticSoftmaxLoss(tree, SMOOTHING, level_order=True),
    )
    by_level, published = level_by_level(tree), published_form(tree)

    def run(threads: int, dtype: str) -> dict[str, Any]:
        torch.set_num_threads(threads)
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
            warmup=1,
            steps=args.steps,
            repeats=args.repeats,
        )

        def times(slower: str, faster: str) -> dict[str, float]:
            """Medians of the ratios within each round: a slow spell of a shared machine meets both."""
            of, to = results[faster], results[slower]
            clocks = {
                "wall": (of.images_per_s, to.images_per_s),
                "cpu": (of.images_per_cpu_s, to.images_per_cpu_s),
            }
            return {
                clock: round(statistics.median(f / s for f, s in zip(*rates, strict=True)), 2)
                for clock, rates in clocks.items()
            }

        return {
            "ms": {name: round(1000 * batch_size / result.median, 2) for name, result in results.items()},
            "results": {name: result.to_json() for name, result in results.items()},
            "faster_than_published": times("published form", "softshard"),
            "faster_than_level_by_level": times("level by level", "softshard"),
            "times_cross_entropy": times("softshard", "cross-entropy"),
            "times_cross_entropy_in_level_order": times("softshard level order", "cross-entropy"),
            "times_smoothed_in_level_order": times("softshard level order", "smoothed cross-entropy"),
        }

    swept = {"threads": sorted({1, args.threads}), "dtype": ["float32", "bfloat16"]}
    write_result(
        args.out,
        benchmark="losses",
        job="semantic softmax with targets from class indices, forward and backward, 11,221 classes on 12 levels",
        swept=swept,
        rows=sweep(swept, run),
        batch_size=batch_size,
        steps=args.steps,
    )


if __name__ == "__main__":
    main()
