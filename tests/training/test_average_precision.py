"""Mean average precision against a loop over thresholds and scikit-learn, in parts, in bins, on several ranks."""

import numpy as np
import pytest
import torch

from softshard.shards import LabelTree
from softshard.shards.errors import UsageError
from softshard.training import average_precision as module
from softshard.training.average_precision import (
    AncestorPrecision,
    MeanAveragePrecision,
    average_precision,
    bin_of,
)


def slow_average_precision(scores, right):
    """sum_n (R_n - R_{n-1}) P_n over the distinct scores, the highest first."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [is_right for score, is_right in zip(scores, right, strict=True) if score >= threshold]
        recall = sum(chosen) / sum(right)
        total += (recall - recall_before) * sum(chosen) / len(chosen)
        recall_before = recall
    return total


def batch(seed=0, n=60, num_classes=5, ties=True):
    """Scores with ties, and targets; no sample has class 3."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, num_classes)).astype(np.float32)
    if ties:
        scores = scores.round(1)
    right = rng.random((n, num_classes)) < 0.3
    right[:, 3:4] = False
    return torch.tensor(scores), torch.tensor(right)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_a_loop_over_thresholds(ties):
    scores, right = batch(ties=ties)
    found = average_precision(scores, right)
    for column in (0, 1, 2, 4):
        expected = slow_average_precision(scores[:, column].tolist(), right[:, column].tolist())
        assert found[column].item() == pytest.approx(expected, rel=1e-12)
    assert found[3].isnan()


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns(ties):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, right = batch(1, ties=ties)
    columns = [0, 1, 2, 4]
    expected = sklearn.average_precision_score(right[:, columns], scores[:, columns], average=None)
    np.testing.assert_allclose(average_precision(scores, right)[columns].numpy(), expected, rtol=1e-12)


def test_batches_padding_and_parts_of_the_classes_change_nothing(monkeypatch):
    scores, right = batch(2)
    expected = average_precision(scores, right)
    metric = MeanAveragePrecision(5)
    metric.update(scores[:25], right[:25])
    padded = torch.cat([torch.arange(25, 60), torch.arange(13)])
    metric.update(scores[padded], right[padded], torch.arange(48) < 35)
    assert metric.compute() == {
        "mean_average_precision": expected[[0, 1, 2, 4]].mean().item(),
        "classes_with_samples": 4,
    }
    monkeypatch.setattr(module, "_SORTED_AT_ONCE", 130)  # two classes
    assert torch.equal(metric.per_class()[:3], expected[:3])


@pytest.mark.parametrize(
    "indices",
    [
        torch.tensor([[0, 2], [1, -1], [-1, -1], [2, 1]]),
        torch.tensor([[2, 0, 2], [-1, 1, -1], [-1, -1, -1], [1, 2, 1]]),
    ],
)
def test_class_indices_say_what_bool_targets_say(indices):
    scores, _ = batch(3, n=4, num_classes=3)
    right = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]]).bool()
    given, expected = MeanAveragePrecision(3), MeanAveragePrecision(3)
    given.update(scores, indices)
    expected.update(scores, right)
    assert given.compute() == expected.compute()


def test_one_class_of_each_sample_may_come_without_a_second_axis():
    scores, _ = batch(4, n=4, num_classes=3)
    given, expected = MeanAveragePrecision(3), MeanAveragePrecision(3)
    given.update(scores, torch.tensor([2, 0, 1, -1]))
    expected.update(scores, torch.tensor([[2], [0], [1], [-1]]))
    assert given.compute() == expected.compute()
    given.update(scores[:2], torch.tensor([99, -5]), torch.tensor([False, False]))  # whatever padding holds
    assert given.compute() == expected.compute()


def test_scores_that_the_caller_changes_afterwards_stay_as_they_were_counted():
    scores, right = batch(7)
    metric = MeanAveragePrecision(5)
    metric.update(scores, right)
    expected = average_precision(scores, right)
    scores.zero_()
    assert torch.equal(metric.per_class()[:3], expected[:3])


@pytest.mark.parametrize("bins", [2, 37, 4096])
def test_bins_give_exactly_the_precision_of_rounded_scores(bins):
    scores, right = batch(5, ties=False)
    metric = MeanAveragePrecision(5, bins=bins, score_range=(-1.5, 1.5))
    for part in (slice(0, 10), slice(10, 60)):
        metric.update(scores[part], right[part])
    expected = average_precision(bin_of(scores, bins, (-1.5, 1.5)), right)
    np.testing.assert_allclose(metric.per_class().numpy(), expected.numpy(), rtol=1e-12)


def test_the_outermost_bins_have_no_end_and_take_what_is_no_number():
    scores = torch.tensor([-torch.inf, -3.0, -1.0, 0.0, 0.99, 1.0, 7.0, torch.inf, torch.nan])
    assert bin_of(scores, 4, (-1.0, 1.0)).tolist() == [0, 0, 0, 2, 3, 3, 3, 3, 0]


def test_an_empty_batch_adds_nothing():
    scores, right = batch(8)
    metrics = [MeanAveragePrecision(5), MeanAveragePrecision(5, bins=16)]
    for metric in metrics:
        metric.update(scores[:0], right[:0])
        metric.update(scores[:0], torch.zeros(0, dtype=torch.int64))
        assert metric.compute()["mean_average_precision"] is None
        metric.update(scores, right)
    assert torch.equal(metrics[0].per_class()[:3], average_precision(scores, right)[:3])


def test_nothing_counted_has_no_precision():
    for bins, more in ((None, {}), (8, {"score_bins": 8})):
        metric = MeanAveragePrecision(3, bins=bins)
        nothing = {"mean_average_precision": None, "classes_with_samples": 0, **more}
        assert metric.compute() == nothing
        metric.update(torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.zeros(2).bool())
        assert metric.compute() == nothing


def test_more_scores_than_can_be_kept_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT_SCORES", 25)
    metric = MeanAveragePrecision(5)
    metric.update(*batch(n=5))
    with pytest.raises(UsageError, match=r"at most 25 scores to keep, found more after 6 .*bins=2048"):
        metric.update(*batch(n=1))
    MeanAveragePrecision(5, bins=2048).update(*batch(n=6))


PAIRS = [("cat", "pet"), ("cat", "hunter"), ("dog", "pet"), ("owl", "hunter")]
TREE = LabelTree.from_table(None, PAIRS, parents="all-paths")


@pytest.mark.parametrize("kept", [True, False])
def test_a_label_and_all_its_ancestors_are_right(kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(module, "MAX_KEPT_SCORES", 10)
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(30, 5)), dtype=torch.float32)
    classes = rng.integers(0, 5, size=30)
    metric = AncestorPrecision(TREE, num_samples=30)
    assert (metric.precision.bins is None) == kept
    levels = torch.tensor(TREE.vectors()[classes], dtype=torch.int64)
    metric.update(logits[:20], levels[:20])
    padded = torch.cat([levels[20:], torch.full_like(levels[:4], 99)])
    metric.update(torch.cat([logits[20:], logits[:4]]), padded, torch.arange(14) < 10)
    above = [{i, *TREE.all_parents[i]} for i in range(5)]
    right = [[i in above[index] for i in range(5)] for index in classes]
    scores = logits if kept else bin_of(logits, 256, (-16.0, 16.0))
    expected = np.mean(
        [slow_average_precision(scores[:, i].tolist(), [row[i] for row in right]) for i in range(5)]
    )
    numbers = metric.compute()
    assert numbers["classes_with_samples"] == 5
    assert numbers["mean_average_precision"] == pytest.approx(expected, rel=1e-12)


def test_levels_that_were_not_trained_have_no_part():
    metric = AncestorPrecision(TREE, num_samples=5, levels=1)
    metric.update(torch.randn(5, 5), torch.tensor(TREE.vectors(), dtype=torch.int64))
    assert metric.compute()["classes_with_samples"] == 2


def _count_on_one_of_two_ranks(rank):
    scores, right = batch(6)
    # Rank 0 has three batches, the last one short; rank 1 one batch, padded.
    parts = [slice(0, 20), slice(20, 40), slice(40, 47)] if rank == 0 else [slice(47, 60)]
    metrics = [MeanAveragePrecision(5), MeanAveragePrecision(5, bins=16)]
    for metric in metrics:
        for part in parts:
            one, other = scores[part], right[part]
            if rank == 1:
                valid = torch.arange(len(one) + 4) < len(one)
                metric.update(torch.cat([one, one[:4]]), torch.cat([other, other[:4]]), valid)
            else:
                metric.update(one, other)
        metric.reduce()
    return [metric.compute() for metric in metrics]


def test_two_ranks_with_uneven_batches_compute_what_one_does(on_two_ranks):
    found = on_two_ranks(_count_on_one_of_two_ranks)
    expected = [MeanAveragePrecision(5), MeanAveragePrecision(5, bins=16)]
    for metric in expected:
        metric.update(*batch(6))
    assert found == [(rank, [metric.compute() for metric in expected]) for rank in range(2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeanAveragePrecision(3, bins=1), "expected two bins or more of a range, found 1"),
        (lambda: MeanAveragePrecision(3, bins=8, score_range=(1.0, 1.0)), r"found 8 within \(1.0, 1.0\)"),
        (
            lambda: MeanAveragePrecision(3).update(torch.zeros(2, 4), torch.zeros(2, 4).bool()),
            r"expected scores \[N, 3\], found \(2, 4\)",
        ),
        (
            lambda: MeanAveragePrecision(3).update(torch.zeros(2, 3), torch.zeros(2, 4).bool()),
            r"expected bool targets \(2, 3\) or int64 class indices \[2, ...\], found torch.bool \(2, 4\)",
        ),
        (
            lambda: MeanAveragePrecision(3).update(torch.zeros(2, 3), torch.zeros(2, 3)),
            r"found torch.float32 \(2, 3\)",
        ),
        (
            lambda: MeanAveragePrecision(3).update(torch.zeros(2, 3), torch.zeros(5, 1, dtype=torch.int64)),
            r"found torch.int64 \(5, 1\)",
        ),
    ],
)
def test_wrong_calls_say_what_was_expected(call, message):
    with pytest.raises(UsageError, match=message):
        call()
