"""Opens a data set, whatever it is: a folder or a URL, with a manifest or somebody else's tars.

folder with a manifest    read in place             URL of one    through the cache
tars without a manifest   indexed, then the same
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shards.errors import DataError
from ..shards.manifest import Manifest, check_sidecar, load_sidecar, load_tree
from ..shards.schema import CLASSES_NAME, LISTING_NAME, MANIFEST_NAME, PLAN_NAME, RECEIPTS_DIR, TREE_NAME
from ..shards.shard_files import dataset_name, dataset_path
from ..shards.storage import open_storage
from ..shards.stored_vocabulary import Vocabulary, load_vocabulary
from ..shards.tree import LabelTree
from .cache import Cache
from .fetch import ShardFiles, Shards
from .other_tars import OtherTars
from .remote import RemoteShards
from .tar_index import split_braces

# A folder with one of these is softshard's own, and not finished: without its manifest nothing of it is served.
_OURS = frozenset({MANIFEST_NAME, PLAN_NAME, LISTING_NAME, RECEIPTS_DIR, CLASSES_NAME, TREE_NAME})


@dataclass(frozen=True)
class DataSet:
    """What the loader reads.

    Attributes:
        name: for messages, without passwords.
        manifest: what it is.
        tree: its label tree, or None.
        shards: its bytes.
        load_classes: reads int32 [samples], every sample's class.
        load_vocabulary: reads what tags mean; None where samples have none.
    """

    name: str
    manifest: Manifest
    tree: LabelTree | None
    shards: Shards
    load_classes: Callable[[], np.ndarray]
    load_vocabulary: Callable[[], Vocabulary | None] = lambda: None


def open_data_set(dataset: str | Path, cache: Cache | None = None) -> DataSet:
    """Open a data set: its manifest, label tree and shards.

    Args:
        dataset: a folder or any fsspec URL; or tars, as `.../{000000..000012}.tar`.
        cache: where shards of remote data sets are kept, and indexes of tars without a manifest.

    Raises:
        DataError: it is incomplete, damaged or of a newer version.
        UsageError: a URL of an unknown kind; a cache that cannot be written.
    """
    cache = cache or Cache()
    if (named := split_braces(dataset)) is not None:
        return _other_tars(dataset, named[0], named[1], cache)
    place = dataset_path(dataset)
    try:
        manifest = Manifest.load(place)
    except DataError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)) and (names := _tars(place)):
            return _other_tars(dataset, place, names, cache)
        raise

    def load_classes() -> np.ndarray:
        check_sidecar(place, manifest)
        return load_sidecar(place, manifest)

    def load_words() -> Vocabulary | None:
        sha256 = manifest.vocabulary_sha256
        return None if sha256 is None else load_vocabulary(place, sha256)

    shards = open_shards(place, manifest, cache)
    tree = load_tree(place, manifest)
    return DataSet(dataset_name(place), manifest, tree, shards, load_classes, load_words)


def open_shards(place: str | Path, manifest: Manifest, cache: Cache | None = None) -> Shards:
    """The shards of a data set with a manifest.

    Args:
        place: as `dataset_path` gives it.
        manifest: of the data set.
        cache: where shards of remote data sets are kept.

    Raises:
        UsageError: a cache that cannot be written.
    """
    if isinstance(place, Path):
        return ShardFiles(place, manifest)
    return RemoteShards(place, manifest, cache or Cache())


def _tars(place: str | Path) -> list[str]:
    """The tars of a folder that is none of ours."""
    try:
        entries = open_storage(place).entries()
    except (OSError, DataError):
        return []
    names = {entry.name for entry in entries}
    if names & _OURS:
        return []
    return [entry.name for entry in entries if entry.name.endswith(".tar") and not entry.is_folder]


def _other_tars(dataset: str | Path, folder: str | Path, names: list[str], cache: Cache) -> DataSet:
    tars = OtherTars(dataset_path(folder), names, cache)
    return DataSet(dataset_name(dataset), tars.manifest, None, tars.shards(), lambda: tars.classes)
