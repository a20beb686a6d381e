"""Accuracies of every class alike, and of ranked keywords, beside a loop over samples."""

import numpy as np
import pytest
import torch

from softshard.loaders import SparseTargets
from softshard.shards.errors import UsageError
from softshard.training import BalancedAccuracy, TagAccuracy


def test_every_class_weighs_the_same_however_many_samples_it_has():
    metric = BalancedAccuracy(3)
    metric.update(torch.eye(3)[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 1]))
    metric.update(torch.eye(3)[[0]], torch.tensor([1]))
    assert metric.compute() == {"balanced_top1": (1 + 1 / 2) / 2, "balanced_top5": 1.0, "classes_seen": 2}


def test_it_equals_a_loop_over_classes_in_any_batches():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(200, 9)))
    classes = torch.tensor(rng.integers(0, 8, 200))  # class 8 has no sample
    valid = torch.tensor(rng.random(200) < 0.8)
    shares = {1: [], 5: []}
    for index in range(8):
        own = logits[valid & (classes == index)]
        for k, found in shares.items():
            found.append((own.argsort(dim=1, descending=True)[:, :k] == index).any(dim=1).double().mean())
    metric = BalancedAccuracy(9)
    classes = classes.masked_fill(~valid, -1)
    for start in range(0, 200, 33):
        part = slice(start, start + 33)
        metric.update(logits[part], classes[part], valid[part])
    found = metric.compute()
    assert found["balanced_top1"] == pytest.approx(np.mean(shares[1]))
    assert found["balanced_top5"] == pytest.approx(np.mean(shares[5]))
    assert found["classes_seen"] == 8


def test_nothing_counted_gives_no_number():
    assert BalancedAccuracy(4).compute()["balanced_top1"] is None
    assert TagAccuracy(4).compute()["tag_top1"] is None


def test_logits_of_other_classes_are_refused():
    with pytest.raises(UsageError, match=r"expected logits \[N, 3\]"):
        BalancedAccuracy(3).update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match="another vocabulary"):
        TagAccuracy(3).update(torch.zeros(2, 4), torch.zeros(2, 4))


@pytest.mark.parametrize("sparse", [False, True])
def test_keywords_are_ranked_as_a_loop_over_images_ranks_them(sparse):
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(60, 20)), (rng.random((60, 20)) < 0.1).astype(np.float32)
    targets[7] = 0
    valid = rng.random(60) < 0.9
    valid[7] = True
    right, recall, tagged = 0, 0.0, 0
    for row, own, counts in zip(logits, targets, valid, strict=True):
        ranked = np.argsort(-row)
        if counts and own.any():
            tagged += 1
            right += bool(own[ranked[0]])
            recall += own[ranked[:5]].sum() / own.sum()
    metric = TagAccuracy(20)
    for part in (slice(0, 25), slice(25, 60)):
        tensor = torch.tensor(targets[part])
        values, ids = tensor.topk(8, dim=1)
        form = SparseTargets(values, ids.masked_fill(values == 0, -1)) if sparse else tensor
        metric.update(torch.tensor(logits[part]), form, torch.tensor(valid[part]))
    found = metric.compute()
    own = targets[valid]
    assert found == {
        "tag_top1": right / tagged,
        "tag_recall5": pytest.approx(recall / tagged),
        "tags_per_image": own.sum() / tagged,
        "tag_chance": pytest.approx(own.sum() / tagged / 20),
        "tag_majority": own.sum(axis=0).max() / tagged,
        "tagged": tagged,
        "untagged": (valid & ~targets.any(axis=1)).sum(),
    }
    assert found["untagged"] >= 1
