"""The offline side: label trees, label maps, the sharder, and all that knows the format. Needs no torch."""

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
from .tree import LabelTree
from .verify import VerifyReport, verify
from .writer import ShardWriter

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
