"""What a Loader says of the data that it serves, as it was opened: classes, tree, counts, fingerprint."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from ..shards.manifest import Manifest
from ..shards.stored_vocabulary import Vocabulary
from ..shards.tree import LabelTree
from .batch_stream import BatchStream
from .mixed_source import MixedSource
from .side_maps import SideFiles
from .source import Source


class LoaderData:
    """The part of a Loader that is about its data and its device, and stays as it is.

    Attributes:
        source: the data set, or a mixture, with the labels and the subset that it is read with.
        device: where batches are.
    """

    source: Source | MixedSource
    device: torch.device
    _side: SideFiles | None

    def count_classes(self) -> np.ndarray:
        """int64 [C], how often each class is served in an epoch, on all ranks together.

        Raises:
            DataError: the file of the samples' classes is missing or damaged.
        """
        return self.source.count_classes()

    @cached_property
    def _stream(self) -> BatchStream:
        return BatchStream(self.device)

    @property
    def manifest(self) -> Manifest:
        """The data set's manifest; of a mixture, that of its first data set."""
        return self.source.manifest

    @property
    def num_samples(self) -> int:
        """Samples that an epoch serves: of the whole data set, or those that labels and subset leave."""
        return self.source.num_samples

    @property
    def num_classes(self) -> int:
        """C of the labels that the data set is read with."""
        return self.source.labels.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in the order of `batch.classes`."""
        return self.source.labels.class_names

    @property
    def tree(self) -> LabelTree | None:
        """Over these classes; `batch.levels` are its vectors. None without one."""
        return self.source.labels.tree

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What tags mean, read when it is asked for; None where samples have none.

        Raises:
            DataError: the file is damaged, or another one than the manifest says.
        """
        return self.source.parts[0].load_vocabulary()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what data set and side shards give, whatever the labels; hashed once."""
        return self.source.fingerprint if self._side is None else self._side.fingerprint
