"""Several paths to a class: losses and metrics against loops over sets of ancestors."""

import math
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tree import PATH_LEAVES, PATH_PAIRS, PATH_TREE, right_classes
from tree_losses import every_loss

from softshard.shards import LabelTree
from softshard.training.ancestors import ancestor_table, count_edges, leaf_classes
from softshard.training.distillation import SemanticKDLoss, teacher_levels
from softshard.training.level_layout import LevelLayout, LevelOrder, distinct_targets
from softshard.training.losses import SemanticSoftmaxLoss, semantic_level_weights
from softshard.training.metrics import SemanticAccuracy, TreeDistance
from softshard.training.multi_label import AsymmetricLoss, BinaryCrossEntropyLoss


def random_tree(seed, num_classes=30, levels=None):
    """Classes of up to three parents, whose levels are scattered over the class indices."""
    rng = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(num_classes)]
    place = rng.permutation(num_classes)
    pairs = [(names[place[i]], "") for i in range(3)]
    for i in range(3, num_classes):
        for parent in rng.choice(i, size=min(i, int(rng.integers(1, 4))), replace=False):
            pairs.append((names[place[i]], names[place[parent]]))
    return LabelTree.from_table(names, pairs, parents="all-paths", levels=levels)


def batch_of(tree, seed, n=12, dtype=torch.float64):
    """Logits, class indices and their levels [N, A, L]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, len(tree.classes), generator=generator, dtype=torch.float64)
    classes = torch.randint(0, len(tree.classes), (n,), generator=generator)
    return logits.to(dtype), classes, torch.tensor(tree.vectors()[classes], dtype=torch.int64)


def right_on_levels(tree, index, num_levels):
    """For each level the right classes there."""
    right = right_classes(tree, index)
    return [right & set(tree.level_classes[level].tolist()) for level in range(num_levels)]


def slow_semantic_softmax(tree, logits, classes, smoothing, num_levels):
    weights = semantic_level_weights(tree.level_sizes)
    total = logits.new_zeros(())
    for row, index in zip(logits, classes.tolist(), strict=True):
        for level, right in enumerate(right_on_levels(tree, index, num_levels)):
            members = tree.level_classes[level].tolist()
            if right:
                log_shares = row[members].log_softmax(0)
                for member, log_share in zip(members, log_shares, strict=True):
                    wanted = (1 - smoothing) * (member in right) / len(right) + smoothing / len(members)
                    total = total - weights[level] * wanted * log_share
    return total / len(logits)


def slow_multi_label(tree, logits, classes, num_levels, asl):
    total = logits.new_zeros(())
    for row, index in zip(logits, classes.tolist(), strict=True):
        right = right_classes(tree, index)
        for member in (i for level in range(num_levels) for i in tree.level_classes[level].tolist()):
            p = row[member].sigmoid()
            if not asl:
                total = total - (p if member in right else 1 - p).log()
            elif member in right:
                total = total - (1 - p).detach() * p.log()
            else:
                q = (p - 0.05).clamp(min=0)
                total = total - q.detach() ** 4 * (1 - q).log()
    return total / len(logits)


def slow_kd(tree, logits, teacher, classes, num_levels, rule):
    total = logits.new_zeros(())
    for row, said, index in zip(logits, teacher, classes.tolist(), strict=True):
        for level, right in enumerate(right_on_levels(tree, index, num_levels)):
            members = tree.level_classes[level].tolist()
            share = said[members].softmax(0)
            trust = share.sort(descending=True).values[: math.ceil(len(members) / 20)].sum()
            trust = 1.0 if rule == "paper" and right else trust
            total = total + trust * (row[members].softmax(0) - share).square().sum()
    return total / len(logits) if rule == "paper" else total


def losses_and_oracles(tree, levels, teacher):
    used = tree.num_levels if levels is None else levels
    cut = {"levels": levels}
    found = {
        "semantic-softmax": (
            SemanticSoftmaxLoss(tree, 0.2, **cut),
            lambda z, y: slow_semantic_softmax(tree, z, y, 0.2, used),
        ),
        "without smoothing": (
            SemanticSoftmaxLoss(tree, 0.0, **cut),
            lambda z, y: slow_semantic_softmax(tree, z, y, 0.0, used),
        ),
        "bce": (BinaryCrossEntropyLoss(tree, **cut), lambda z, y: slow_multi_label(tree, z, y, used, False)),
        "asl": (AsymmetricLoss(tree, **cut), lambda z, y: slow_multi_label(tree, z, y, used, True)),
    }
    for rule in ("paper", "code"):
        kd = SemanticKDLoss(tree, rule, **cut)
        found[f"kd, {rule}"] = (
            lambda z, y, kd=kd: kd(z, teacher, y),
            lambda z, y, rule=rule: slow_kd(tree, z, teacher, y, used, rule),
        )
    return found


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([1, 2, None]))
def test_losses_and_gradients_equal_loops_over_samples_and_sets_of_ancestors(seed, levels):
    tree = random_tree(seed)
    logits, classes, paths = batch_of(tree, seed, n=5)
    teacher = batch_of(tree, seed + 1, n=5)[0]
    logits.requires_grad_()
    for name, (loss, slow) in losses_and_oracles(tree, levels, teacher).items():
        expected = slow(logits, classes)
        (expected_gradient,) = torch.autograd.grad(expected, logits)
        for labels in (paths, classes):
            found = loss(logits, labels)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=name)
            (gradient,) = torch.autograd.grad(found, logits)
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_the_random_trees_have_what_makes_several_paths_different():
    trees = [random_tree(seed) for seed in range(5)]
    paths = torch.cat([torch.tensor(tree.vectors().reshape(-1, tree.num_levels)) for tree in trees[:1]])
    assert all(tree.num_paths > 2 for tree in trees)
    passed_over = (paths[:, :-1] < 0) & (paths[:, 1:] >= 0)
    assert passed_over.any()


def called(name, tree, loss, logits, labels, valid=None):
    extra = []
    if name.startswith("kd"):
        extra = [logits.detach().flip(1)]
        if name == "kd, stored":
            extra = [teacher_levels(extra[0], LevelLayout(tree))]
    return loss(logits, *extra, labels, valid)


NAMES = ("semantic-softmax", "bce", "asl", "kd", "kd, stored")


@settings(max_examples=20)
@given(data=st.data())
def test_one_path_gives_bit_for_bit_what_levels_without_paths_give(data):
    tree = LabelTree.from_table(PATH_LEAVES, PATH_PAIRS, parents="first")
    rows = data.draw(st.lists(st.integers(-1, len(tree.classes) - 1), min_size=1, max_size=6))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    classes = torch.tensor(rows)
    levels = torch.tensor(tree.vectors(), dtype=torch.int64)[classes].masked_fill(classes[:, None] < 0, -1)
    logits = torch.randn(len(rows), len(tree.classes), generator=torch.manual_seed(0)).to(dtype)
    logits.requires_grad_()
    for name, loss in every_loss(tree).items():
        found = [
            called(name, tree, loss, logits, labels, classes >= 0)
            for labels in (levels, levels[:, None], levels[:, None].expand(-1, 3, -1))
        ]
        gradients = [torch.autograd.grad(value, logits)[0] for value in found]
        assert torch.equal(found[0], found[1]), name
        assert torch.equal(found[0], found[2]), name  # the same class on three rows
        assert torch.equal(gradients[0], gradients[1]), name
        assert torch.equal(gradients[0], gradients[2]), name
    accuracies = [SemanticAccuracy(tree) for _ in range(3)]
    for accuracy, labels in zip(
        accuracies, (levels, levels[:, None], levels[:, None].repeat(1, 3, 1)), strict=True
    ):
        accuracy.update(logits, labels)
    assert accuracies[0].compute() == accuracies[1].compute() == accuracies[2].compute()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_paths_and_padding_change_nothing(name):
    tree = random_tree(1)
    logits, _, paths = batch_of(tree, 1)
    loss = every_loss(tree)[name]
    turned = torch.cat([paths.flip(1), torch.full_like(paths[:, :2], -1)], dim=1)
    torch.testing.assert_close(
        called(name, tree, loss, logits, turned), called(name, tree, loss, logits, paths), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(name, dtype):
    tree = random_tree(2)
    logits, _, paths = batch_of(tree, 2, dtype=dtype)
    logits.requires_grad_()
    loss = every_loss(tree)[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = called(name, tree, loss, logits, paths)
    assert found.dtype == torch.float32
    expected = called(name, tree, loss, logits.detach().float(), paths)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_invalid_samples_change_neither_the_loss_nor_the_gradient(name):
    tree = random_tree(3)
    logits, _, paths = batch_of(tree, 3)
    logits.requires_grad_()
    valid = torch.arange(12) % 3 > 0
    loss = every_loss(tree)[name]
    padded = paths.masked_fill(~valid[:, None, None], -1)  # as the loader pads
    masked = called(name, tree, loss, logits, padded, valid)
    torch.testing.assert_close(masked, called(name, tree, loss, logits[valid], paths[valid]))
    (gradient,) = torch.autograd.grad(masked, logits)
    assert gradient[~valid].abs().max() == 0


@pytest.mark.parametrize("name", ["semantic-softmax", "bce", "asl", "kd"])
def test_level_order_changes_nothing(name):
    tree = random_tree(4)
    logits, _, paths = batch_of(tree, 4)
    ordered = LevelOrder(tree).to_level_order(logits, dim=1)
    extra = [logits.flip(1)] if name == "kd" else []
    plain = every_loss(tree)[name](logits, *extra, paths)
    found = every_loss(tree, level_order=True)[name](ordered, *extra, paths)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)


def test_a_logit_of_minus_infinity_that_is_no_target_leaves_the_loss_finite():
    logits = torch.zeros(1, 8)
    logits[0, PATH_TREE.class_index["crow"]] = -math.inf
    levels = torch.tensor(PATH_TREE.vectors()[[PATH_TREE.class_index["bat"]]], dtype=torch.int64)
    assert SemanticSoftmaxLoss(PATH_TREE, smoothing=0.0)(logits, levels).isfinite()


def test_targets_of_a_level_stay_once_each():
    paths = torch.tensor([[[0, 1, -1], [0, 1, 2], [0, -1, 2], [3, -1, -1]]])
    found = distinct_targets(paths)
    sets = [sorted(place for place in level if place >= 0) for level in found[0].T.tolist()]
    assert sets == [[0, 3], [1], [2]]


def test_a_bat_is_right_about_both_its_parents_in_equal_parts():
    logits = torch.zeros(1, 8)
    logits[0, PATH_TREE.class_index["mammal"]] = 2.0
    logits.requires_grad_()
    levels = torch.tensor(PATH_TREE.vectors()[[PATH_TREE.class_index["bat"]]], dtype=torch.int64)
    SemanticSoftmaxLoss(PATH_TREE, smoothing=0.0)(logits, levels).backward()
    share = math.exp(2) / (math.exp(2) + 1)
    weight = semantic_level_weights(PATH_TREE.level_sizes)[1]
    gradient = logits.grad[0, [PATH_TREE.class_index["mammal"], PATH_TREE.class_index["flier"]]]
    assert gradient.tolist() == pytest.approx([weight * (share - 0.5), weight * (0.5 - share)], rel=1e-5)


def counted_by_hand(tree, logits, classes):
    right, pairs = [0] * tree.num_levels, [0] * tree.num_levels
    for row, index in zip(logits, classes.tolist(), strict=True):
        for level, wanted in enumerate(right_on_levels(tree, index, tree.num_levels)):
            if wanted:
                members = tree.level_classes[level].tolist()
                right[level] += max(members, key=lambda i: row[i].item()) in wanted
                pairs[level] += 1
    return right, pairs


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_a_pair_counts_once_and_is_right_with_any_of_its_classes(seed):
    tree = random_tree(seed)
    logits, classes, paths = batch_of(tree, seed, n=40)
    right, pairs = counted_by_hand(tree, logits, classes)
    accuracy = SemanticAccuracy(tree)
    accuracy.update(logits[:30], paths[:30])
    padded = torch.cat([paths[30:], torch.full_like(paths[:5], 99)])  # whatever stands in a padded slot
    accuracy.update(torch.cat([logits[30:], logits[:5]]), padded, torch.arange(15) < 10)
    numbers = accuracy.compute()
    shares = [r / p if p else None for r, p in zip(right, pairs, strict=True)]
    reached = [share for share in shares if share is not None]
    choices = [k for k, size in enumerate(tree.level_sizes) if size > 1]
    assert numbers["semantic_accuracy"] == sum(right) / sum(pairs)
    assert numbers["semantic_macro"] == sum(reached) / len(reached)
    assert numbers["semantic_choice"] == sum(right[k] for k in choices) / sum(pairs[k] for k in choices)
    assert numbers["per_level"] == shares


def test_chance_and_majority_know_that_several_answers_may_be_right():
    accuracy = SemanticAccuracy(PATH_TREE)
    labels = [PATH_TREE.class_index[name] for name in ("bat", "bat", "crow", "seal")]
    accuracy.update(torch.zeros(4, 8), torch.tensor(PATH_TREE.vectors()[labels], dtype=torch.int64))
    numbers = accuracy.compute()
    # Level 0, animal and swimmer: one of two right, for the seal both. Level 1: both for the bats. Level 2: one of 4.
    assert numbers["semantic_chance"] == pytest.approx((3 / 2 + 1 + 2 + 1 / 2 + 1 / 2 + 4 / 4) / 12)
    # Always animal; always mammal or flier, of which each is right three times; always bat.
    assert numbers["semantic_majority"] == pytest.approx((4 + 3 + 2) / 12)


def edges_by_search(tree, first, second):
    """Up from the first class to any ancestor, or to the node above the roots, and down to the second one."""

    def ways_up(start):
        ways, ahead = {start: 0}, deque([start])
        while ahead:
            node = ahead.popleft()
            for parent in () if node < 0 else tree.all_parents[node] or (-1,):
                if parent not in ways:
                    ways[parent] = ways[node] + 1
                    ahead.append(parent)
        return ways

    ours, theirs = ways_up(first), ways_up(second)
    return min(ours[node] + theirs[node] for node in ours.keys() & theirs.keys())


@pytest.mark.parametrize("tree", [PATH_TREE, random_tree(0), random_tree(5, levels=2)])
def test_edges_are_those_of_the_shortest_way(tree):
    indices = torch.arange(len(tree.classes))
    first, second = (grid.flatten() for grid in torch.meshgrid(indices, indices, indexing="ij"))
    expected = [edges_by_search(tree, a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert count_edges(ancestor_table(tree), first, second).tolist() == expected


def test_distances_of_errors_go_the_shortest_way():
    distance = TreeDistance(PATH_TREE)
    index = PATH_TREE.class_index
    truth = torch.tensor([index["bat"], index["seal"], index["seal"]])
    answers = torch.tensor([index["crow"], index["swimmer"], index["bat"]])
    distance.update(torch.nn.functional.one_hot(answers, 8).float(), truth)
    assert distance.compute()["tree_distance"] == pytest.approx((2 + 1 + 2) / 3)


def test_a_parent_by_a_shorter_path_is_no_leaf():
    assert [PATH_TREE.classes[i] for i in leaf_classes(PATH_TREE)] == ["cat", "bat", "crow", "seal"]
