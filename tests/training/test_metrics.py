"""Accuracies against counting by hand, with padded and uneven batches and more than one rank."""

import numpy as np
import pytest
import torch

from softshard.shards.errors import UsageError
from softshard.training.metrics import SemanticAccuracy, TopKAccuracy

LEVELS = [[0, 3], [1, 4], [2, 5]]


def counted_by_hand(logits, levels):
    right, pairs = [0, 0, 0], [0, 0, 0]
    for row, targets in zip(logits.tolist(), levels.tolist(), strict=True):
        for level, target in enumerate(targets):
            if target >= 0:
                scores = [row[i] for i in LEVELS[level]]
                right[level] += scores.index(max(scores)) == target
                pairs[level] += 1
    return right, pairs


def random_batch(seed, n=40):
    rng = np.random.default_rng(seed)
    depth = rng.integers(1, 4, size=n)
    levels = np.where(np.arange(3) < depth[:, None], rng.integers(0, 2, size=(n, 3)), -1)
    return torch.tensor(rng.normal(size=(n, 6))), torch.tensor(levels)


def test_semantic_accuracy_equals_counting_by_hand():
    logits, levels = random_batch(0)
    accuracy = SemanticAccuracy(LEVELS)
    accuracy.update(logits, levels)
    right, pairs = counted_by_hand(logits, levels)
    shares = [r / p for r, p in zip(right, pairs, strict=True)]
    assert accuracy.compute() == {
        "semantic_accuracy": sum(right) / sum(pairs),
        "semantic_macro": sum(shares) / 3,
        "per_level": shares,
    }


def test_uneven_and_padded_batches_count_every_sample_once():
    logits, levels = random_batch(1)
    whole, parts = SemanticAccuracy(LEVELS), SemanticAccuracy(LEVELS)
    whole.update(logits, levels)
    for part in (slice(0, 16), slice(16, 32)):
        parts.update(logits[part], levels[part])
    padded = torch.cat([torch.arange(32, 40), torch.zeros(8, dtype=torch.int64)])
    parts.update(logits[padded], levels[padded], torch.arange(16) < 8)
    assert parts.compute() == whole.compute()


def test_a_level_without_targets_is_left_out_of_the_macro_mean():
    accuracy = SemanticAccuracy(LEVELS)
    accuracy.update(torch.tensor([[1.0, 0, 0, 0, 0, 0]]), torch.tensor([[0, -1, -1]]))
    assert accuracy.compute() == {
        "semantic_accuracy": 1.0,
        "semantic_macro": 1.0,
        "per_level": [1.0, None, None],
    }


def test_nothing_counted_has_no_accuracy():
    assert SemanticAccuracy(LEVELS).compute()["semantic_accuracy"] is None
    assert TopKAccuracy(6).compute()["top1"] is None


def test_top_k_of_all_classes_and_of_leaves():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4]])
    accuracy = TopKAccuracy(6, leaf_classes=[2, 5])
    accuracy.update(logits, torch.tensor([0, 2, 5, 0]), torch.tensor([True, True, True, False]))
    numbers = accuracy.compute()
    assert (numbers["top1"], numbers["top5"]) == (1 / 3, 2 / 3)
    # Among the leaves 2 and 5 alone, 2 wins every time.
    assert (numbers["leaf_top1"], numbers["leaf_top5"], numbers["leaf_chance"]) == (1 / 2, 1.0, 1 / 2)
    assert (numbers["samples"], numbers["leaf_samples"]) == (3, 2)


def test_majority_is_the_share_of_the_commonest_class():
    accuracy = TopKAccuracy(6)
    accuracy.update(torch.randn(5, 6), torch.tensor([1, 1, 2, 1, 1]), torch.tensor([1, 1, 1, 1, 0]).bool())
    assert accuracy.compute()["majority"] == 3 / 4
    assert accuracy.compute()["chance"] == 1 / 6


def test_fewer_than_five_classes_are_all_within_the_best_five():
    accuracy = TopKAccuracy(3)
    accuracy.update(torch.tensor([[0.0, 1, 2], [0, 1, 2]]), torch.tensor([0, 2]))
    assert (accuracy.compute()["top1"], accuracy.compute()["top5"]) == (0.5, 1.0)


def test_a_padded_slot_may_hold_any_class():
    accuracy = TopKAccuracy(3)
    accuracy.update(torch.zeros(2, 3), torch.tensor([-1, 99]), torch.tensor([False, False]))
    assert accuracy.compute()["samples"] == 0


def _count_on_one_of_two_ranks(rank, address, queue):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    logits, levels = random_batch(2)
    part = slice(0, 29) if rank == 0 else slice(29, 40)
    accuracy, top_k = SemanticAccuracy(LEVELS), TopKAccuracy(6)
    accuracy.update(logits[part], levels[part])
    top_k.update(logits[part], levels[part, 0])
    accuracy.reduce()
    top_k.reduce()
    queue.put((rank, accuracy.compute(), top_k.compute()))
    torch.distributed.destroy_process_group()


def test_reduce_sums_the_counts_of_all_ranks(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    address = f"file://{tmp_path}/rendezvous"
    ranks = [context.Process(target=_count_on_one_of_two_ranks, args=(r, address, queue)) for r in range(2)]
    for process in ranks:
        process.start()
    found = sorted((queue.get() for _ in ranks), key=lambda entry: entry[0])
    for process in ranks:
        process.join()
    logits, levels = random_batch(2)
    accuracy, top_k = SemanticAccuracy(LEVELS), TopKAccuracy(6)
    accuracy.update(logits, levels)
    top_k.update(logits, levels[:, 0])
    assert found == [(rank, accuracy.compute(), top_k.compute()) for rank in range(2)]


def test_wrong_shapes_are_refused():
    with pytest.raises(UsageError, match=r"expected levels \(2, 3\), found \(2, 2\)"):
        SemanticAccuracy(LEVELS).update(torch.zeros(2, 6), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"expected logits \[N, 6\], found \(2, 5\)"):
        TopKAccuracy(6).update(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
