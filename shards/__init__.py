"""The offline side: label trees, label maps, the sharder, and all that knows the format. Needs no torch.

Names are imported when they are first used, so that the command line starts without NumPy and OpenCV.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import DataError, ImageError, MissingExtraError, SoftshardError, StorageError, UsageError
    from .images import ImageRecipe
    from .labelmap import decode_label_map, decode_label_maps, encode_label_map
    from .manifest import Manifest
    from .pack import PackOptions, PackSummary, pack
    from .reader import Sample, read_shard
    from .relabel import Relabelling, relabel
    from .reshard import reshard
    from .reshard_plan import ReshardOptions
    from .soft_labels import SoftLabelInfo, encode_pseudo_labels
    from .stored_vocabulary import Vocabulary
    from .subset_file import SubsetFile
    from .tree import LabelTree
    from .verify import VerifyReport, verify
    from .writer import ShardWriter

_HOMES = {
    "DataError": ".errors",
    "ImageError": ".errors",
    "ImageRecipe": ".images",
    "LabelTree": ".tree",
    "Manifest": ".manifest",
    "MissingExtraError": ".errors",
    "PackOptions": ".pack",
    "PackSummary": ".pack",
    "Relabelling": ".relabel",
    "ReshardOptions": ".reshard_plan",
    "Sample": ".reader",
    "ShardWriter": ".writer",
    "SoftLabelInfo": ".soft_labels",
    "SoftshardError": ".errors",
    "StorageError": ".errors",
    "SubsetFile": ".subset_file",
    "UsageError": ".errors",
    "VerifyReport": ".verify",
    "Vocabulary": ".stored_vocabulary",
    "decode_label_map": ".labelmap",
    "decode_label_maps": ".labelmap",
    "encode_label_map": ".labelmap",
    "encode_pseudo_labels": ".soft_labels",
    "pack": ".pack",
    "read_shard": ".reader",
    "relabel": ".relabel",
    "reshard": ".reshard",
    "verify": ".verify",
}

__all__ = [
    "DataError",
    "ImageError",
    "ImageRecipe",
    "LabelTree",
    "Manifest",
    "MissingExtraError",
    "PackOptions",
    "PackSummary",
    "Relabelling",
    "ReshardOptions",
    "Sample",
    "ShardWriter",
    "SoftLabelInfo",
    "SoftshardError",
    "StorageError",
    "SubsetFile",
    "UsageError",
    "VerifyReport",
    "Vocabulary",
    "decode_label_map",
    "decode_label_maps",
    "encode_label_map",
    "encode_pseudo_labels",
    "pack",
    "read_shard",
    "relabel",
    "reshard",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


class _Package(ModuleType):
    """A package whose functions pack, relabel, reshard and verify keep their names.

    They live in modules of the same names, and importing a module puts it into its package under its name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
