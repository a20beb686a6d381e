"""A data set behind servers of the data service: what they say of it, in the place of a Source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..shards.errors import UsageError
from ..shards.manifest import Manifest
from ..shards.stored_vocabulary import Vocabulary
from ..shards.tree import LabelTree
from .labels import Labels
from .service_pool import ServerPool


@dataclass(frozen=True, eq=False)
class RemoteSource:
    """What the servers say of the data set; the part of a Source that needs no shards.

    Attributes:
        dataset: where it is, for messages.
        facts: what `Desk.open` answers.
        manifest: the data set's; of a mixture, that of the first.
        labels: what classes and levels mean.
        pool: of the servers.
    """

    dataset: str
    facts: dict[str, Any]
    manifest: Manifest
    labels: Labels
    pool: ServerPool

    @classmethod
    def of(cls, dataset: str, pool: ServerPool) -> RemoteSource:
        """Check and read what the servers said.

        Raises:
            DataError: a manifest or tree that is none.
        """
        facts = pool.facts
        tree = None if facts["tree"] is None else LabelTree.from_json(facts["tree"], where=dataset)
        manifest = Manifest.from_json(facts["manifest"], dataset)
        return cls(dataset, facts, manifest, Labels(tuple(facts["class_names"]), tree), pool)

    @property
    def num_samples(self) -> int:
        return self.facts["num_samples"]

    @property
    def fingerprint(self) -> str:
        return self.facts["fingerprint"]

    def labels_fingerprint(self) -> str | None:
        return self.facts["labels"]

    def mixture_state(self) -> dict[str, Any] | None:
        return self.facts["mixture"]

    def count_classes(self) -> np.ndarray:
        """See Loader.count_classes."""
        return np.array(self.pool.count_classes(), np.int64)

    def load_vocabulary(self) -> Vocabulary | None:
        """What tags mean, read where the shards are; see Loader.vocabulary."""
        return None if self.manifest.vocabulary_sha256 is None else self.pool.vocabulary()

    @property
    def parts(self) -> Any:
        """Not here.

        Raises:
            UsageError: always; shards are on the servers.
        """
        raise UsageError(
            f"{self.dataset}: expected a data set whose shards can be read here, found one behind the data service. Give "
            "its folder or URL"
        )
