"""Semantic knowledge distillation: a student learns a teacher's probabilities within each level of a label tree.

Shape letters: N batch, C classes, L levels, N_k classes and K_k kept classes of level k, K the sum of K_k.
`valid` and `num_valid` as in losses.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..loaders.batch import TeacherLevels
from ..shards.errors import UsageError, check_choice
from ..shards.teacher_levels import num_kept
from ..shards.tree import LabelTree
from .level_layout import LevelClasses, LevelLayout, reached_levels
from .losses import SoftTargetLoss, loss_dtype, mean_over_valid
from .recipe_targets import DISTILLATION_RULES


@torch.no_grad()
def teacher_levels(logits: Tensor, layout: LevelLayout) -> TeacherLevels:
    """What of a teacher's logits is stored.

    Args:
        logits: floating [N, C], in the order of the layout.
        layout: `LevelLayout(tree)`, on the device of the logits.

    Returns:
        int64 ids and float16 probabilities, the most probable class of a level first.
    """
    kept = num_kept(layout.level_sizes)
    best = [
        probabilities.topk(k, dim=1)
        for k, probabilities in zip(kept, _level_softmax(logits, layout), strict=True)
    ]
    values = torch.cat([level.values for level in best], dim=1).to(torch.float16)
    return TeacherLevels(torch.cat([level.indices for level in best], dim=1), values)


class SemanticKDLoss(nn.Module):
    """Squared distance of student and teacher probabilities on every level (Ridnik et al. 2021, sec. 3.3).

    sum_k P_k ||S_k - T_k||^2, with S_k and T_k the softmax over the classes of level k, and P_k how far the
    teacher is trusted there. The text and the published code differ:

        rule="paper"  P_k is 1 where the ground truth reaches level k, else the sum of the teacher's ceil(N_k / 20)
                      largest probabilities; averaged over the batch. In a tree of all paths the ground truth
                      reaches a level where any of its paths does.
        rule="code"   P_k is always that sum; added up over the batch, so `num_valid` is not used and the loss
                      grows with the batch.

    Args:
        tree: a LabelTree, or its `level_classes`; None, which `loader.tree` may be, is refused.
        rule: `paper` or `code`.
        levels: how many levels are compared, from the root; None for all. The published code leaves out the
            deepest level of its fall11 tree: `levels=11`.
        level_order: the student's logits come in level order: see `LevelOrder`. Labels and live teacher logits do
            not change.
    """

    def __init__(
        self,
        tree: LabelTree | LevelClasses | None,
        rule: str = "paper",
        *,
        levels: int | None = None,
        level_order: bool = False,
    ) -> None:
        super().__init__()
        check_choice("SemanticKDLoss: rule", rule, DISTILLATION_RULES)
        self.rule = rule
        self.layout = LevelLayout(tree, levels=levels, level_order=level_order, owner="SemanticKDLoss")
        self.teacher_layout = LevelLayout(tree, levels=levels, owner="SemanticKDLoss: teacher")
        self.num_kept = num_kept(self.layout.level_sizes)

    def forward(
        self,
        logits: Tensor,
        teacher: Tensor | TeacherLevels,
        labels: Tensor | None = None,
        valid: Tensor | None = None,
        num_valid: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            logits: floating [N, C], the student's.
            teacher: logits [N, C] of a live teacher, in class order and without a gradient; or what was
                stored of them, a batch's `teacher`: what its probabilities leave of 1 counts as spread evenly over
                the level's other classes. Its K may cover more levels than the loss does.
            labels: for the paper's rule: int64 [N, L] or [N, A, L], a batch's `levels`; or int64 [N], class indices,
                where the loss was made from a LabelTree.
            valid: see losses.py.
            num_valid: see losses.py.

        Returns:
            float32 scalar (float64 for float64 logits).
        """
        student_levels = _level_softmax(logits, self.layout)
        if isinstance(teacher, TeacherLevels):
            teacher_probabilities, confidences = self._stored(teacher, student_levels)
        else:
            teacher_probabilities, confidences = self._live(teacher, student_levels)
        distances = torch.stack(
            [(s - t).square().sum(dim=1) for s, t in zip(student_levels, teacher_probabilities, strict=True)],
            dim=1,
        )
        if self.rule == "code":
            return mean_over_valid((distances * confidences).sum(dim=1), valid, num_valid=1)
        if labels is None:
            raise UsageError(
                "SemanticKDLoss: expected labels for the paper's rule, found None; give the batch's levels, "
                "or choose rule='code'"
            )
        trust = confidences.masked_fill(reached_levels(self.layout.targets(labels)), 1.0)
        return mean_over_valid((distances * trust).sum(dim=1), valid, num_valid)

    def extra_repr(self) -> str:
        return f"rule={self.rule!r}, levels={self.layout.num_levels}"

    def _live(self, teacher: Tensor, student_levels: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Probabilities of a teacher's logits, level by level, and their confidences [N, L]."""
        with torch.no_grad():
            probabilities = _level_softmax(teacher.to(student_levels[0].dtype), self.teacher_layout)
            confidences = [
                p.topk(k, dim=1).values.sum(dim=1) for k, p in zip(self.num_kept, probabilities, strict=True)
            ]
            return probabilities, torch.stack(confidences, dim=1)

    def _stored(self, teacher: TeacherLevels, student_levels: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The same from the best classes alone."""
        ids, values = teacher
        width = sum(self.num_kept)
        if ids.ndim != 2 or ids.shape != values.shape or ids.shape[1] < width:
            raise UsageError(
                f"SemanticKDLoss: expected ids and probabilities [N, {width}] or wider, found {tuple(ids.shape)} "
                f"and {tuple(values.shape)}; they were stored for another tree"
            )
        ids = ids[:, :width].to(torch.int64).split(self.num_kept, dim=1)
        values = values[:, :width].to(student_levels[0].dtype).split(self.num_kept, dim=1)
        probabilities, confidences = [], []
        for student, level_ids, best in zip(student_levels, ids, values, strict=True):
            confidence = best.sum(dim=1)
            # Rounded to float16 the best may come to a little more than 1.
            rest = (1.0 - confidence).clamp(min=0.0) / max(student.shape[1] - best.shape[1], 1)
            spread = rest[:, None].expand(-1, student.shape[1])
            probabilities.append(spread.scatter(1, level_ids, best))
            confidences.append(confidence)
        return probabilities, torch.stack(confidences, dim=1)


def _level_softmax(logits: Tensor, layout: LevelLayout) -> list[Tensor]:
    """Softmax within each level: L tensors [N, N_k]; float32 also under autocast."""
    return [level.softmax(dim=1) for level in layout.split(layout.arrange(logits).to(loss_dtype(logits)))]


class LiveTeacherLoss(nn.Module):
    """Cross-entropy with the probabilities that a teacher gives the very crop: distillation at temperature 1."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = SoftTargetLoss()

    def forward(
        self,
        logits: Tensor,
        teacher: Tensor,
        target: Tensor,
        valid: Tensor | None = None,
        num_valid: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of a batch: logits floating [N, C] of student and teacher; `target`, the label, is not looked at."""
        return self.loss(logits, teacher.to(loss_dtype(teacher)).softmax(dim=1), valid, num_valid)
