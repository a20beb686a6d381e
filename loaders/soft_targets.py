"""Targets from soft labels in the shards: tags, class weights, pseudo labels (Yan et al. 2020), dense or sparse.

N slots, M entries of all of them, W the width of a target: T tags, or C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..shards.errors import UsageError
from ..shards.schema import META, SOFT
from ..shards.soft_labels import TAGS, WEIGHTS, SparseLabels, decode_soft_labels
from .batch_buffers import BatchBuffers
from .pooling import SparseTargets
from .sample_reader import Found
from .samples import Place
from .soft_compiled import MOST_KEPT, find_compiled, keep_compiled, load_soft_kernels
from .source import Source

_ADVICE = {
    TAGS: "softshard tags build, then softshard pack --vocabulary or softshard reshard --tags",
    WEIGHTS: "softshard tags weigh, then softshard pack --weights or softshard reshard --weights",
    "pseudo": "a model's pseudo labels, component 'soft'",
}


class SoftTargets:
    """Makes targets of one kind of soft labels.

    Args:
        sources: the data sets, whose classes mean the same.
        kind: `tags`, `weights` or `pseudo`.
        num_slots: N.
        device: where targets are.
        keep: None for dense targets, else the entries that are kept of each.

    Raises:
        UsageError: a data set has no such labels, or tags of another vocabulary.
    """

    def __init__(
        self, sources: Sequence[Source], kind: str, *, num_slots: int, device: torch.device, keep: int | None
    ) -> None:
        self._kind, self._num_slots, self._device, self._keep = kind, num_slots, device, keep
        _check_labels(sources, kind)
        self._suffix = META.suffix if kind in (TAGS, WEIGHTS) else SOFT.suffix
        if kind == TAGS:
            self._num_stored = [_num_tags(source) for source in sources]
            self._class_maps = [None for _ in sources]
            self.width = self._num_stored[0]
        else:
            self._num_stored = [source.manifest.num_classes for source in sources]
            self._class_maps = [source.labels.class_map for source in sources]
            self.width = sources[0].labels.num_classes
        self._kernels = load_soft_kernels()
        self._buffers = None
        if keep is None and device.type == "cpu":
            self._buffers = BatchBuffers((num_slots, self.width), torch.float32)

    def make(self, found: Found, slots: np.ndarray) -> torch.Tensor | SparseTargets:
        """The targets of a batch.

        Args:
            found: M samples.
            slots: int64 [M], where they stand.

        Returns:
            float32 [N, W], zeros in empty slots; or the `keep` largest values of each, see SparseTargets.

        Raises:
            DataError: see `decode_soft_labels`.
        """
        parts = []
        for i, rows in found.by_source():
            places: list[Place] = [found.places[row] for row in rows]

            def where(j: int, places: list[Place] = places) -> str:
                shard, place = places[j]
                return shard.sample(place)

            members = [found.members[self._suffix][row] for row in rows]
            stored = self._stored(members, self._num_stored[i], where)
            labels = _renamed(stored, self._class_maps[i], self.width)
            parts.append(labels._replace(rows=slots[rows][labels.rows]))
        if not parts:
            parts = [SparseLabels(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        every = SparseLabels(*map(np.concatenate, zip(*parts, strict=True)))
        if self._keep is not None:
            return self._sparse(every, self._keep)
        if self._buffers is not None:
            # Not by torch, whose threads would take the cores that decode: a third of loading for nothing.
            dense = self._buffers.take()
            self._fill(dense.numpy(), every)
            return dense
        targets = torch.zeros(self._num_slots, self.width, device=self._device)
        # No entry twice, so that the order in which a GPU writes them does not matter.
        targets.view(-1)[self._there(every.rows * self.width + every.ids)] = self._there(every.weights)
        return targets

    def _stored(
        self, members: Sequence[memoryview], num_ids: int, where: Callable[[int], str]
    ) -> SparseLabels:
        if self._kernels is not None:
            found = find_compiled(self._kernels.find_labels, self._kind, members, num_ids)
            if found is not None:
                return found
        return decode_soft_labels(self._kind, members, num_ids, where)

    def _fill(self, dense: np.ndarray, labels: SparseLabels) -> None:
        if self._kernels is not None:
            self._kernels.fill_dense(dense, *labels)
            return
        dense.fill(0)
        dense[labels.rows, labels.ids] = labels.weights

    def _sparse(self, labels: SparseLabels, keep: int) -> SparseTargets:
        if self._kernels is not None and keep <= MOST_KEPT:
            values, classes = keep_compiled(self._kernels.fill_largest, labels, self._num_slots, keep)
        else:
            values, classes = keep_largest(labels, self._num_slots, keep)
        return SparseTargets(self._there(values), self._there(classes))

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def keep_largest(labels: SparseLabels, num_slots: int, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` largest entries of each slot: float32 and int64 [num_slots, keep], zeros where there are fewer.

    The largest comes first, of equal ones that with the smaller id. `keep_compiled` agrees with it bit for bit.
    """
    order = np.lexsort((labels.ids, -labels.weights, labels.rows))
    rows, ids, weights = (part[order] for part in labels)
    ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
    some = ranks < keep
    places = rows[some], ranks[some]
    values, classes = np.zeros((num_slots, keep), np.float32), np.zeros((num_slots, keep), np.int64)
    values[places], classes[places] = weights[some], ids[some]
    return values, classes


def _renamed(labels: SparseLabels, class_map: np.ndarray | None, num_classes: int) -> SparseLabels:
    """The same over the loader's classes: what is left out goes, what becomes one class is added up."""
    if class_map is None:
        return labels
    ids = class_map[labels.ids].astype(np.int64)
    kept = ids >= 0
    spots, place = np.unique(labels.rows[kept] * num_classes + ids[kept], return_inverse=True)
    weights = np.bincount(place, labels.weights[kept], len(spots)).astype(np.float32)
    return SparseLabels(spots // num_classes, spots % num_classes, weights)


def _check_labels(sources: Sequence[Source], kind: str) -> None:
    for source in sources:
        info = source.manifest.soft_labels
        if info is None or not info.has(kind):
            raise UsageError(
                f"{source.dataset}: expected samples with {kind!r} for targets={kind!r}, found "
                f"{'none' if info is None else ', '.join(info.to_json())}. Add them: {_ADVICE[kind]}"
            )
    if kind == TAGS:
        # Size and hash: a set that gives somebody else's hash with a larger size would write outside of the targets.
        first, *others = ((s, s.manifest.vocabulary_sha256 or "", _num_tags(s)) for s in sources)
        for other in others:
            if other[1:] != first[1:]:
                ours, theirs = (
                    f"{sha256[:12]} with {num:,} tags in {s.dataset}" for s, sha256, num in (first, other)
                )
                raise UsageError(
                    f"mixture: expected tags of one vocabulary, found {ours} and {theirs}. Pack both with the same "
                    "--vocabulary"
                )


def _num_tags(source: Source) -> int:
    info = source.manifest.soft_labels
    return 0 if info is None else info.num_tags
