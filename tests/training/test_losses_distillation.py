"""Semantic distillation against a loop over samples, from live and from stored teachers."""

import math

import numpy as np
import pytest
import torch
from tiny_runs import taught_at_random

from softshard.loaders import Augment, Loader
from softshard.shards.errors import UsageError
from softshard.shards.teacher_levels import decode_teacher_levels, encode_teacher_levels, num_kept
from softshard.shards.tree import LabelTree
from softshard.training.distillation import SemanticKDLoss, TeacherLevels, teacher_levels
from softshard.training.level_layout import LevelLayout

# Levels of 3, 45 and 12 classes, so that 1, 3 and 1 of them are kept.
NAMES = [f"c{i}" for i in range(60)]
SHUFFLED = np.random.default_rng(0).permutation(60)
PARENTS = [(NAMES[SHUFFLED[i]], NAMES[SHUFFLED[(i - 3) % 3 if i < 48 else i - 40]]) for i in range(3, 60)]
TREE = LabelTree.from_table(NAMES, PARENTS)
LABELS = torch.tensor([int(SHUFFLED[i]) for i in (0, 10, 50, 59, 2)])  # levels 0, 1, 2, 2, 0


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(5, 60, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.to(dtype), teacher.to(dtype)


def softmax(scores):
    shifted = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(shifted) for value in shifted]


def slow_loss(student, teacher, rule, num_levels=3, stored=False):
    """The definition, one sample and one level at a time."""
    total = 0.0
    for sample in range(len(student)):
        for level in range(num_levels):
            ids = TREE.level_classes[level].tolist()
            s = softmax([float(student[sample, i]) for i in ids])
            t = softmax([float(teacher[sample, i]) for i in ids])
            best = sorted(range(len(ids)), key=lambda i: -t[i])[: math.ceil(len(ids) / 20)]
            confidence = sum(t[i] for i in best)
            if stored:
                rest = (1 - confidence) / max(len(ids) - len(best), 1)
                t = [t[i] if i in best else rest for i in range(len(ids))]
            if rule == "paper" and TREE.levels[LABELS[sample]] >= level:
                confidence = 1.0
            total += confidence * sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
    return total / len(student) if rule == "paper" else total


def test_the_tree_keeps_more_than_one_class_somewhere():
    assert TREE.level_sizes == (3, 45, 12)
    assert num_kept(TREE.level_sizes) == (1, 3, 1)


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("levels", [1, 2, None])
def test_a_live_teacher_equals_a_loop_over_samples(rule, levels):
    student, teacher = batch()
    loss = SemanticKDLoss(TREE, rule, levels=levels)(student, teacher, LABELS)
    assert loss.item() == pytest.approx(slow_loss(student, teacher, rule, levels or 3), rel=1e-12)


def exact_teacher_levels(teacher):
    """As teacher_levels, in float64."""
    layout = LevelLayout(TREE)
    best = [
        level.softmax(dim=1).topk(math.ceil(level.shape[1] / 20), dim=1)
        for level in layout.split(layout.arrange(teacher))
    ]
    return TeacherLevels(
        torch.cat([b.indices for b in best], dim=1), torch.cat([b.values for b in best], dim=1)
    )


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("levels", [2, None])
def test_a_stored_teacher_equals_a_loop_over_samples(rule, levels):
    student, teacher = batch()
    loss = SemanticKDLoss(TREE, rule, levels=levels)(student, exact_teacher_levels(teacher), LABELS)
    expected = slow_loss(student, teacher, rule, levels or 3, stored=True)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_what_is_stored_are_the_best_classes_of_each_level_in_float16():
    _, teacher = batch()
    found, exact = teacher_levels(teacher, LevelLayout(TREE)), exact_teacher_levels(teacher)
    assert found.probabilities.dtype == torch.float16
    assert torch.equal(found.ids, exact.ids)
    assert torch.equal(found.probabilities, exact.probabilities.to(torch.float16))


def test_the_loss_takes_a_batchs_teacher_as_it_is(shards, tmp_path):
    tree, logits, row = taught_at_random(shards / "train", tmp_path)
    made = teacher_levels(logits, LevelLayout(tree))
    with Loader(tmp_path, batch_size=8, teacher=True, augment=Augment(size=32)) as loader:
        batch = next(iter(loader))
    rows = [row[key] for key in batch.keys]
    expected = TeacherLevels(*(part[rows] for part in made))
    loss, student = SemanticKDLoss(tree), torch.zeros(8, len(tree.classes))
    assert loss(student, batch.teacher, batch.levels) == loss(student, expected, batch.levels) > 0


@pytest.mark.parametrize("level_order", [False, True])
def test_a_teacher_that_went_through_a_shard_gives_the_same_loss(level_order):
    student, teacher = batch(torch.float32)
    made = teacher_levels(teacher, LevelLayout(TREE))
    values = [
        encode_teacher_levels(ids.numpy(), probabilities.numpy(), TREE.level_sizes)
        for ids, probabilities in zip(*made, strict=True)
    ]
    read = TeacherLevels(
        *(torch.from_numpy(array) for array in decode_teacher_levels(values, TREE.level_sizes))
    )
    assert torch.equal(read.ids, made.ids)
    assert torch.equal(read.probabilities, made.probabilities)
    loss = SemanticKDLoss(TREE, level_order=level_order)
    assert torch.equal(loss(student, read, LABELS), loss(student, made, LABELS))


def test_a_stored_teacher_that_is_sure_is_the_live_one():
    student, _ = batch(torch.float32)
    sure = torch.full((5, 60), -40.0)
    for ids in TREE.level_classes:
        sure[:, ids[1]] = 40.0
    loss = SemanticKDLoss(TREE)
    stored = loss(student, teacher_levels(sure, LevelLayout(TREE)), LABELS)
    torch.testing.assert_close(stored, loss(student, sure, LABELS))


def test_a_student_like_its_teacher_has_loss_zero():
    student, _ = batch()
    assert SemanticKDLoss(TREE)(student, student.clone(), LABELS).item() < 1e-30


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("stored", [False, True])
def test_the_gradient_is_that_of_the_loss_and_the_teacher_has_none(rule, stored):
    student, teacher = batch()
    teacher.requires_grad_()
    given = exact_teacher_levels(teacher.detach()) if stored else teacher
    loss = SemanticKDLoss(TREE, rule)
    assert torch.autograd.gradcheck(lambda z: loss(z, given, LABELS), student.requires_grad_())
    loss(student, given, LABELS).backward()
    assert teacher.grad is None


def test_levels_and_class_indices_say_the_same():
    student, teacher = batch()
    levels = torch.tensor(TREE.vectors()[LABELS], dtype=torch.int64)
    loss = SemanticKDLoss(TREE)
    assert torch.equal(loss(student, teacher, levels), loss(student, teacher, LABELS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    student, teacher = batch(dtype)
    loss = SemanticKDLoss(TREE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(student.requires_grad_(), teacher, LABELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.detach().float(), teacher.float(), LABELS))
    found.backward()
    assert student.grad.dtype == dtype


@pytest.mark.parametrize("stored", [False, True])
def test_invalid_samples_change_neither_the_loss_nor_the_gradient(stored):
    student, teacher = batch()
    student.requires_grad_()
    valid = torch.tensor([True, False, True, True, False])
    given, some = teacher, teacher[valid]
    if stored:
        # As a loader pads: no ids, no probabilities, no label.
        made = exact_teacher_levels(teacher)
        given = TeacherLevels(*(tensor.masked_fill(~valid[:, None], 0) for tensor in made))
        some = TeacherLevels(*(tensor[valid] for tensor in made))
    padded_labels = LABELS.masked_fill(~valid, -1)
    loss = SemanticKDLoss(TREE)
    masked = loss(student, given, padded_labels, valid)
    torch.testing.assert_close(masked, loss(student[valid], some, LABELS[valid]))
    (gradient,) = torch.autograd.grad(masked, student)
    assert gradient[~valid].abs().max() == 0


def test_the_papers_rule_over_uneven_ranks_averages_to_the_global_batch():
    student, teacher = batch()
    valid = torch.tensor([True, True, True, True, False])
    loss = SemanticKDLoss(TREE)
    parts = (slice(0, 2), slice(2, 5))
    ranks = [2 * loss(student[p], teacher[p], LABELS[p], valid[p], valid.sum()) for p in parts]
    torch.testing.assert_close(sum(ranks) / 2, loss(student[:4], teacher[:4], LABELS[:4]))


def test_the_codes_rule_adds_the_batch_up():
    student, teacher = batch()
    loss = SemanticKDLoss(TREE, "code")
    halves = loss(student[:2], teacher[:2]) + loss(student[2:], teacher[2:])
    torch.testing.assert_close(halves, loss(student, teacher, num_valid=99))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SemanticKDLoss(TREE, "both"), "rule: expected one of paper, code, found 'both'"),
        (lambda: SemanticKDLoss(TREE)(*batch()), "expected labels for the paper's rule, found None"),
        (lambda: SemanticKDLoss(TREE)(batch()[0], torch.ones(5, 61), LABELS), "teacher: expected logits"),
        (
            lambda: SemanticKDLoss(TREE)(
                batch()[0], TeacherLevels(torch.zeros(5, 4), torch.zeros(5, 4)), LABELS
            ),
            r"expected ids and probabilities \[N, 5\] or wider, found \(5, 4\)",
        ),
        (lambda: SemanticKDLoss(None), "expected a label tree, found None"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, message):
    with pytest.raises(UsageError, match=message):
        call()
