"""How well a model ranks keywords, counted without waiting for the device.

Shape letters: N batch, T keywords, K kept targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..loaders.pooling import SparseTargets
from .counted import Counted


class TagAccuracy(Counted):
    """Of the images that have keywords: is the best guess one of them, and how many are among the five best?

    Images without a keyword are only counted.

    Args:
        num_tags: T.
    """

    _summed = ("counts", "sums", "per_tag")

    def __init__(self, num_tags: int) -> None:
        self.num_tags = num_tags
        # Best guess right, tagged images, images without a keyword.
        self.counts = torch.zeros(3, dtype=torch.int64)
        # Sums over images: the share of its keywords within the five best, its number of keywords.
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.per_tag = torch.zeros(num_tags, dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Tensor | SparseTargets, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: floating [N, T].
            targets: [N, T], above 0 for an image's keywords; or SparseTargets [N, K], whose values are.
            valid: bool [N]; False slots are not counted.
        """
        valid = self._begin(logits, self.num_tags, valid, "vocabulary")
        best = logits.topk(min(5, self.num_tags), dim=1).indices
        if isinstance(targets, SparseTargets):
            there = (targets.values > 0) & valid[:, None]
            hits = ((best[:, :, None] == targets.ids[:, None]) & there[:, None]).any(dim=2)
            self.per_tag.index_add_(0, targets.ids.masked_fill(~there, 0).flatten(), there.flatten().long())
        else:
            there = (targets > 0) & valid[:, None]
            hits = there.gather(1, best)
            self.per_tag += there.sum(dim=0)
        num_own = there.sum(dim=1)
        tagged = num_own > 0
        self.counts += torch.stack([hits[:, 0].sum(), tagged.sum(), (valid & ~tagged).sum()])
        recall = hits.sum(dim=1) / num_own.clamp(min=1)
        self.sums += torch.stack([recall.double().sum(), num_own.sum().double()])

    def compute(self) -> dict[str, float | int | None]:
        """The numbers so far; shares in [0, 1], None where no image has a keyword.

        Returns:
            `tag_top1`: images whose best guess is one of their keywords; `tag_recall5`: mean share of an image's
            keywords within the five best guesses; `tags_per_image`: of those that have any; `tag_chance`: `tag_top1` to
            expect of a guess; `tag_majority`: that of always answering with the commonest keyword; `tagged` and
            `untagged`: images with and without keywords.
        """
        right, tagged, untagged = self.counts.tolist()
        recall, num_own = self.sums.tolist()

        def share(part: float) -> float | None:
            return part / tagged if tagged else None

        return {
            "tag_top1": share(right),
            "tag_recall5": share(recall),
            "tags_per_image": share(num_own),
            "tag_chance": share(num_own / self.num_tags),
            "tag_majority": share(int(self.per_tag.max())),
            "tagged": tagged,
            "untagged": untagged,
        }
