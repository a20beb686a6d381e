"""Accuracies against counting by hand, with padded and uneven batches and more than one rank."""

import numpy as np
import pytest
import torch
from toy_tree import TOY, TOY_PAIRS

from softshard.shards.errors import UsageError
from softshard.shards.tree import LabelTree
from softshard.training.ancestors import ancestor_table, count_edges
from softshard.training.balanced_accuracy import BalancedAccuracy
from softshard.training.metrics import SemanticAccuracy, TopKAccuracy, TreeDistance

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
    numbers = accuracy.compute()
    assert numbers["semantic_accuracy"] == sum(right) / sum(pairs)
    assert numbers["semantic_macro"] == sum(shares) / 3
    assert numbers["per_level"] == shares


def test_a_level_of_one_class_is_no_choice():
    accuracy = SemanticAccuracy([[0], [1, 2, 3]])
    logits = torch.tensor([[0.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    accuracy.update(logits, torch.tensor([[0, 0], [0, 1], [0, 1], [0, -1]]))
    numbers = accuracy.compute()
    assert numbers["semantic_accuracy"] == 5 / 7  # four times level 0, and one of three
    assert numbers["semantic_choice"] == 1 / 3
    assert numbers["semantic_chance"] == pytest.approx((4 + 3 / 3) / 7)
    assert numbers["semantic_majority"] == (4 + 2) / 7


def test_always_answering_the_commonest_classes_reaches_the_majority():
    _, levels = random_batch(3)
    commonest = [np.bincount(column[column >= 0]).argmax() for column in levels.numpy().T]
    logits = torch.zeros(len(levels), 6)
    for ids, best in zip(LEVELS, commonest, strict=True):
        logits[:, ids[best]] = 1.0
    accuracy = SemanticAccuracy(LEVELS)
    accuracy.update(logits, levels)
    numbers = accuracy.compute()
    assert numbers["semantic_accuracy"] == numbers["semantic_majority"] > numbers["semantic_chance"] == 0.5


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
    assert accuracy.compute()["semantic_macro"] == 1.0
    assert accuracy.compute()["per_level"] == [1.0, None, None]


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


def forest(max_levels=None):
    """animal > vertebrate > (bird, fish); plant > tree > oak; stone."""
    return LabelTree.from_table([*TOY, "stone"], [*TOY_PAIRS, ("stone", "")], levels=max_levels)


def edges_by_walking(tree, first, second):
    def chain(node):
        while node >= 0:
            yield node
            node = int(tree.parents[node])
        yield -1  # the common node above all roots

    first, second = list(chain(first)), list(chain(second))
    return min(i + j for i, a in enumerate(first) for j, b in enumerate(second) if a == b)


def test_edges_between_all_classes_equal_a_walk_over_the_parents():
    tree = forest()
    first, second = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    )
    expected = [edges_by_walking(tree, a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert count_edges(ancestor_table(tree), first, second).tolist() == expected
    assert expected[2 * 8 + 3] == 2  # bird and fish
    assert expected[0 * 8 + 7] == 2  # animal and stone, two roots


def test_a_cut_of_the_levels_does_not_bring_classes_nearer():
    for cut, whole in zip(ancestor_table(forest(max_levels=2)), ancestor_table(forest()), strict=True):
        assert torch.equal(cut, whole)


def test_tree_distance_counts_all_samples_the_wrong_ones_and_the_leaves():
    distance = TreeDistance(forest())
    predicted = torch.tensor([2, 3, 5, 6, 0])
    truth = torch.tensor([2, 2, 6, 2, -1])  # right, a sister, the parent, another root; padding
    logits = torch.nn.functional.one_hot(predicted, 8).float() + torch.tensor([0, 0, 0, 0.1, 0, 0, 0, 0])
    distance.update(logits, truth, torch.tensor([1, 1, 1, 1, 0]).bool())
    # Among the leaves bird, fish, oak and stone the third answer is fish: up to the common node and down.
    assert distance.compute() == {
        "tree_distance": (0 + 2 + 1 + 6) / 4,
        "tree_distance_of_errors": (2 + 1 + 6) / 3,
        "leaf_tree_distance": (0 + 2 + 6 + 6) / 4,
        "leaf_tree_distance_of_errors": (2 + 6 + 6) / 3,
    }


def test_no_error_has_no_distance():
    distance = TreeDistance(forest())
    distance.update(torch.eye(8), torch.arange(8))
    assert distance.compute()["tree_distance"] == 0.0
    assert distance.compute()["tree_distance_of_errors"] is None


def _metrics_of(batches):
    semantic = SemanticAccuracy(LEVELS)
    by_class = (TopKAccuracy(6), TreeDistance(_tree_of_levels()), BalancedAccuracy(6))
    for logits, levels, valid in batches:
        semantic.update(logits, levels, valid)
        for metric in by_class:
            metric.update(logits, levels.masked_fill(levels < 0, 0)[:, 0] * 3, valid)
    return semantic, *by_class


def _tree_of_levels():
    return LabelTree.from_table(list("abcdef"), [("b", "a"), ("c", "b"), ("e", "d"), ("f", "e")])


def _count_on_one_of_two_ranks(rank):
    logits, levels = random_batch(2)
    # Rank 0 has three batches, the last one short; rank 1 one batch, padded.
    parts = [slice(0, 12), slice(12, 24), slice(24, 29)] if rank == 0 else [slice(29, 40)]
    batches = [(logits[part], levels[part], None) for part in parts]
    if rank == 1:
        padding = torch.full((4, 3), -1)
        padded = (torch.cat([batches[0][0], torch.ones(4, 6)]), torch.cat([batches[0][1], padding]))
        batches = [(*padded, torch.arange(15) < 11)]
    metrics = _metrics_of(batches)
    for metric in metrics:
        metric.reduce()
    return [metric.compute() for metric in metrics]


def test_reduce_sums_the_counts_of_all_ranks(on_two_ranks):
    found = on_two_ranks(_count_on_one_of_two_ranks)
    logits, levels = random_batch(2)
    expected = [metric.compute() for metric in _metrics_of([(logits, levels, None)])]
    assert found == [(rank, expected) for rank in range(2)]
    assert expected[2]["tree_distance_of_errors"] > 1


def test_wrong_shapes_are_refused():
    with pytest.raises(UsageError, match=r"expected levels \(2, 3\), or several .*, found \(2, 2\)"):
        SemanticAccuracy(LEVELS).update(torch.zeros(2, 6), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"expected logits \[N, 6\], found \(2, 5\)"):
        TopKAccuracy(6).update(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"expected logits \[N, 8\], found \(2, 6\)"):
        TreeDistance(forest()).update(torch.zeros(2, 6), torch.zeros(2, dtype=torch.int64))
