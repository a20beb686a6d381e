"""Multi-label mean average precision: does a class score the images it is in above those it is not in?

Shape letters: N batch, S samples so far, C classes, T classes of a sample at most, B bins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ..shards.errors import UsageError
from ..shards.tree import LabelTree
from .counted import sum_over_ranks
from .level_layout import LevelLayout
from .multi_label import multi_label_targets

# Scores that are kept are 5 bytes of memory each: 1.3 GB, or 50,000 images of 5,000 classes.
MAX_KEPT_SCORES = 1 << 28
_SORTED_AT_ONCE = 1 << 24  # scores or bins: some 500 MB while they are looked through


class MeanAveragePrecision:
    """Mean over classes of the average precision: sum_n (R_n - R_{n-1}) P_n, with P_n and R_n precision and recall of
    the n-th threshold, one for each distinct score (scikit-learn's `average_precision_score`, without interpolation).

    Classes that no sample has are left out of the mean. `update` adds a batch, `reduce` brings the ranks together,
    `compute` gives the numbers, as of a Counted; neither uneven batches nor padded slots change them.

    By default every score is kept, on the device, and the result is exact. With `bins` two counts for each class and bin
    are kept instead, whatever the number of samples, and the result is exactly that of the scores rounded to the
    bins: equal widths within `score_range`, what lies beyond in the outermost ones.

    Args:
        num_classes: C.
        bins: B, or None to keep every score.
        score_range: (lowest, highest) score that bins tell apart; the default is meant for logits.

    Raises:
        UsageError: less than two bins, or an empty range.
    """

    def __init__(
        self, num_classes: int, *, bins: int | None = None, score_range: tuple[float, float] = (-16.0, 16.0)
    ) -> None:
        if (bins is not None and bins < 2) or not score_range[0] < score_range[1]:
            raise UsageError(
                f"MeanAveragePrecision: expected two bins or more of a range, found {bins} within {score_range}"
            )
        self.num_classes = num_classes
        self.bins = bins
        self.score_range = score_range
        # Of each batch: scores float32 [N, C], and int8 [N, C]: 1 right, 0 wrong, -1 not counted.
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.num_kept = 0
        # Wrong and right scores in each class's bins, from the lowest bin.
        self.counts = torch.zeros(2, num_classes * (bins or 0), dtype=torch.int32)

    @classmethod
    def within_memory(cls, num_classes: int, num_samples: int) -> MeanAveragePrecision:
        """Exact where the scores of all samples can be kept, else of scores rounded to bins that take no more memory.

        For 11,221 classes these are 5,980, 1/187 of a logit each. (With 2,048 bins the mean over 50 classes of drawn
        scores was 0.1 percent points too low.)

        Args:
            num_classes: C.
            num_samples: of all ranks together.
        """
        # Half of them, since padded slots are kept, too.
        fits = num_samples * num_classes <= MAX_KEPT_SCORES // 2
        bins = min(max(MAX_KEPT_SCORES // (4 * num_classes), 256), 1 << 14)
        return cls(num_classes, bins=None if fits else bins)

    @torch.no_grad()
    def update(self, scores: Tensor, targets: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            scores: floating [N, C], higher for a class that is more likely; probabilities or logits.
            targets: bool [N, C]; or int64 [N, T] or [N], the indices of the classes that are right, -1 for none.
            valid: bool [N]. False slots are not counted; samples without a class are: every class is wrong there.

        Raises:
            UsageError: other shapes; or too many scores to keep.
        """
        if scores.ndim != 2 or scores.shape[1] != self.num_classes:
            raise UsageError(
                f"MeanAveragePrecision: expected scores [N, {self.num_classes}], found {tuple(scores.shape)}; "
                "the model was built for another class list"
            )
        counted = scores.new_ones(len(scores), dtype=torch.bool) if valid is None else valid
        is_right = targets
        if targets.dtype == torch.int64 and targets.ndim < 3 and len(targets) == len(scores):
            indices = targets[:, None] if targets.ndim == 1 else targets
            # A padded slot may hold any class index, so it must not be used to look anything up.
            is_right = multi_hot(indices.masked_fill(~counted[:, None], -1), self.num_classes)
        if is_right.dtype != torch.bool or is_right.shape != scores.shape:
            raise UsageError(
                f"MeanAveragePrecision: expected bool targets {tuple(scores.shape)} or int64 class indices "
                f"[{len(scores)}, ...], found {targets.dtype} {tuple(targets.shape)}"
            )
        if self.bins is not None:
            self._count(scores.float(), is_right, counted, self.bins)
            return
        self.num_kept += scores.numel()
        if self.num_kept > MAX_KEPT_SCORES:
            raise UsageError(
                f"MeanAveragePrecision: expected at most {MAX_KEPT_SCORES:,} scores to keep, found more after "
                f"{self.num_kept // self.num_classes:,} samples of {self.num_classes:,} classes. Count them in bins: "
                "MeanAveragePrecision(num_classes, bins=2048)"
            )
        marks = is_right.to(torch.int8).masked_fill(~counted[:, None], -1)
        self.kept.append((scores.to(torch.float32, copy=True), marks))  # the caller's may change

    def reduce(self) -> None:
        """Bring the ranks of torch.distributed together; afterwards every rank computes the same.

        Scores that were kept are then on every rank.
        """
        if self.bins is not None:
            sum_over_ranks(self.counts)
        elif dist.is_available() and dist.is_initialized():
            scores, marks = self._joined()
            self.kept = [(_of_all_ranks(scores), _of_all_ranks(marks))]

    def per_class(self) -> Tensor:
        """float64 [C] on the CPU: average precision of each class, NaN for a class that no sample has."""
        if self.bins is not None:
            # The highest bin first.
            groups = self.counts.view(2, self.num_classes, self.bins).flip(2).transpose(1, 2)
            parts = groups.split(max(1, _SORTED_AT_ONCE // self.bins), dim=2)
            return torch.cat([_precision_over_groups(*part.long()) for part in parts]).cpu()
        scores, marks = self._joined()
        counted = marks[:, 0] >= 0
        scores, marks = scores[counted], marks[counted]
        width = max(1, _SORTED_AT_ONCE // max(len(scores), 1))
        columns = zip(scores.split(width, dim=1), marks.split(width, dim=1), strict=True)
        return torch.cat([average_precision(*part) for part in columns]).cpu()

    def compute(self) -> dict[str, Any]:
        """The numbers so far.

        Returns:
            `mean_average_precision`: in [0, 1], None where no sample has a class.
            `classes_with_samples`: over how many classes it is the mean.
            `score_bins`: B, where scores were rounded to bins; else it is missing.
        """
        found = self.per_class()
        found = found[~found.isnan()]
        return {
            "mean_average_precision": found.mean().item() if len(found) else None,
            "classes_with_samples": len(found),
            **({} if self.bins is None else {"score_bins": self.bins}),
        }

    def _count(self, scores: Tensor, is_right: Tensor, counted: Tensor, bins: int) -> None:
        if self.counts.device != scores.device:
            self.counts = self.counts.to(scores.device)
        places = bin_of(scores, bins, self.score_range)
        places = places + bins * torch.arange(self.num_classes, device=scores.device)
        for row, chosen in enumerate((~is_right, is_right)):
            added = (chosen & counted[:, None]).to(torch.int32)
            self.counts[row].scatter_add_(0, places.flatten(), added.flatten())

    def _joined(self) -> tuple[Tensor, Tensor]:
        """Everything kept as scores [S, C] and marks [S, C]."""
        if not self.kept:
            return torch.zeros(0, self.num_classes), torch.zeros(0, self.num_classes, dtype=torch.int8)
        scores, marks = zip(*self.kept, strict=True)
        self.kept = [(torch.cat(scores), torch.cat(marks))]
        return self.kept[0]


class AncestorPrecision:
    """Mean average precision over the classes of a label tree, where a label and all its ancestors are right.

    For models of sigmoids; `MeanAveragePrecision.within_memory`. It works as a Counted does.

    Args:
        tree: a LabelTree; classes below a cut of its levels have no part in it.
        num_samples: of all ranks together.
        levels: how many levels were trained, from the root; None for all.
    """

    def __init__(self, tree: LabelTree, num_samples: int, levels: int | None = None) -> None:
        self.layout = LevelLayout(tree, levels=levels, owner="AncestorPrecision")
        self.precision = MeanAveragePrecision.within_memory(self.layout.num_columns, num_samples)

    @torch.no_grad()
    def update(self, logits: Tensor, levels: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch: logits floating [N, C], levels int64 [N, L] or [N, A, L] with A paths, valid bool [N]."""
        if self.layout.order.device != logits.device:
            self.layout.to(logits.device)
        targets = self.layout.targets(levels)
        if valid is not None:  # a padded slot may hold any index
            targets = targets.masked_fill(~valid.view(-1, *[1] * (targets.ndim - 1)), -1)
        is_right = multi_label_targets(targets, self.layout) > 0
        self.precision.update(self.layout.arrange(logits), is_right, valid)

    def reduce(self) -> None:
        """Bring the ranks of torch.distributed together; afterwards every rank computes the same."""
        self.precision.reduce()

    def compute(self) -> dict[str, Any]:
        """See MeanAveragePrecision."""
        return self.precision.compute()


def average_precision(scores: Tensor, is_right: Tensor) -> Tensor:
    """Average precision of every class; equal scores are one threshold.

    Args:
        scores: floating [S, C].
        is_right: bool or integer [S, C], 1 where the class is right.

    Returns:
        float64 [C], NaN for a class that no sample has.
    """
    if not len(scores):
        return torch.full((scores.shape[1],), torch.nan, dtype=torch.float64, device=scores.device)
    scores, order = scores.sort(dim=0, descending=True)
    right = is_right.gather(0, order).long()
    # All samples of one score are counted at the last of them, as one group.
    is_last = torch.ones_like(scores, dtype=torch.bool)
    is_last[:-1] = scores[1:] != scores[:-1]
    found = right.cumsum(0)
    ends = torch.where(is_last, torch.arange(len(scores), device=scores.device)[:, None], len(scores))
    ends = ends.flip(0).cummin(dim=0).values.flip(0)
    precision = found.gather(0, ends).double() / (ends + 1)
    return (precision * right).sum(dim=0) / found[-1]


def bin_of(scores: Tensor, bins: int, score_range: tuple[float, float]) -> Tensor:
    """The bin of each score, int64 in [0, bins): equal widths, the outermost ones without end."""
    low, high = score_range
    scores = scores.nan_to_num(nan=low)  # of a model that has diverged: some bin, not an index out of range
    return ((scores - low) * (bins / (high - low))).clamp(0, bins - 1).long()


def multi_hot(classes: Tensor, num_classes: int) -> Tensor:
    """Class indices int64 [N, T], -1 for none, to bool [N, C]."""
    found = torch.zeros(len(classes), num_classes + 1, dtype=torch.bool, device=classes.device)
    # One column more, for no class.
    found.scatter_(1, classes.masked_fill(classes < 0, num_classes), True)
    return found[:, :num_classes]


def _precision_over_groups(wrong: Tensor, right: Tensor) -> Tensor:
    """The same from int64 [G, C]: wrong and right ones of each group of equal scores, the highest first."""
    found, seen = right.cumsum(0), (wrong + right).cumsum(0)
    precision = found.double() / seen.clamp(min=1)
    return (precision * right).sum(dim=0) / found[-1]


def _of_all_ranks(tensor: Tensor) -> Tensor:
    """The rows of all ranks, in their order; ranks may have different numbers of them."""
    rows = torch.tensor([len(tensor)], device=tensor.device)
    all_rows = [torch.zeros_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(all_rows, rows)
    counts = [int(count) for count in all_rows]
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
