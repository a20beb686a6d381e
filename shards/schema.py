"""What a shard is: component names, dtypes, versions and limits, each written once.

Writer, reader, loader, verifier and FORMAT.md take them from here (a test compares FORMAT.md with this file).
Shape letters: L hierarchy levels, A paths to a class, K classes kept per label-map cell, P Q label-map rows and columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FORMAT_NAME = "softshard"
# Readers refuse a newer major version; a newer minor version only adds fields they may ignore.
FORMAT_VERSION = (1, 0)

MANIFEST_NAME = "manifest.json"
CLASSES_NAME = "classes.npy"
TREE_NAME = "tree.json"
TIMM_INFO_NAME = "_info.json"
SIDE_NAME = "label_maps.json"  # of side shards, which have no manifest
VOCABULARY_NAME = "vocabulary.tsv"
PLAN_NAME = "plan.json"
LISTING_NAME = ".listing"  # while a run lasts
LEDGER_NAME = "bad.jsonl"
RECEIPTS_DIR = "receipts"

MIB = 1024 * 1024
TAR_BLOCK_BYTES = 512


@dataclass(frozen=True)
class Component:
    """One file of a sample.

    Attributes:
        suffix: the part of the member name after the key and a dot.
        content: dtype, shape and encoding, as FORMAT.md prints it.
        required: True where every softshard data set has it.
        max_bytes: a longer member is refused before it is read.
    """

    suffix: str
    content: str
    required: bool
    max_bytes: int


JPG = Component("jpg", "baseline JPEG, RGB, orientation applied, no EXIF", True, 64 * MIB)
CLS = Component("cls", "class index, ASCII decimal", True, 16)
HIER = Component(
    "hier.npy",
    "`.npy` 1.0, int16 [L] or [A, L]: hierarchical label vectors, -1 above the own level",
    False,
    4096,
)
LMAP = Component("lmap", "compressed top-k label map [K, P, Q], see below", False, 4 * MIB)
META = Component(
    "msgpack",
    "MessagePack map: `path` (str), `size` ([height, width] of the original); `tags`, `weights`, see below",
    True,
    MIB,
)
KD = Component(
    "kd", "a distillation teacher's best classes on every level of the tree, see below", False, 270_352
)
SOFT = Component("soft", "pseudo labels: MessagePack [class ids, weights], see below", False, MIB)

# In the order in which a sample's members stand in the tar.
COMPONENTS = (JPG, CLS, HIER, LMAP, META, KD, SOFT)
COMPONENT_BY_SUFFIX = {component.suffix: component for component in COMPONENTS}

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,89}")
# A key, a dot and a suffix fill the 100 bytes of a ustar name at most.
SUFFIX_PATTERN = re.compile(r"(?=.{1,10}\Z)[a-z0-9_]+(\.[a-z0-9_]+)*")
KEY_STEM_LENGTH = 80  # longest `class_stem`; 9 more for `-` and 8 hex digits of the path's hash

DEFAULT_SHARD_BYTES = 256 * 10**6

MAX_LEVEL_CLASSES = 32_767  # a hierarchical label is an int16
MAX_CLASS_ID = 65_535  # a label-map id is a uint16
MAX_IMAGE_PIXELS = 178_956_970  # Pillow's own bound for a decompression bomb
MAX_JPEG_SIDE = 65_500  # libjpeg's
MAX_MAP_ELEMENTS = 4 * MIB  # K * P * Q
MAX_TAR_MEMBERS = 16 * MIB
MAX_MANIFEST_BYTES = 512 * MIB
MAX_TREE_BYTES = 64 * MIB
MAX_VOCABULARY = MIB  # tags
MAX_VOCABULARY_BYTES = 64 * MIB
MAX_PLAN_BYTES = 64 * MIB
MAX_LISTING_BYTES = 8192 * MIB
MAX_RECEIPT_BYTES = 1024 * MIB  # of a shard with as many members as one may have


def component_rank(suffix: str) -> int:
    """Where a component stands within a sample; unknown ones go last, in order of their names."""
    for rank, component in enumerate(COMPONENTS):
        if component.suffix == suffix:
            return rank
    return len(COMPONENTS)


def sorted_suffixes(suffixes: Iterable[str]) -> list[str]:
    """Component suffixes in the order in which a sample's members stand in the tar."""
    return sorted(suffixes, key=lambda suffix: (component_rank(suffix), suffix))


def split_member_name(name: str) -> tuple[str, str]:
    """Split `key.suffix` at the first dot of the last path part, as WebDataset readers do.

    Returns:
        (key, suffix); suffix is empty when the name has no dot.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()
