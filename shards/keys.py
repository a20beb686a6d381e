"""Sample keys: `class_stem`, made safe, with 8 hex digits of the path's hash where that is not unique.

Whether a key is unique takes a look at all names of a class; what a key is then takes its own name alone, so that
keys are made shard by shard.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .names import Names, name_bytes
from .schema import KEY_STEM_LENGTH

_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_-]")
# Upper case is left out: some file systems and readers ignore case.
_PLAIN = (string.ascii_lowercase + string.digits + "_-").encode()
_IN_A_KEY = (string.ascii_letters + string.digits + "_-").encode()


def path_sha256(class_name: str, file: str) -> str:
    """SHA-256 (hex) of `class/file name`."""
    return hashlib.sha256(name_bytes(f"{class_name}/{file}")).hexdigest()


def sample_key(class_name: str, file: str, *, is_unique: bool) -> str:
    """`class_stem`, and 8 hex digits of the path's hash where it was changed or is not unique."""
    raw = _raw_key(class_name, file)
    key = _clean_key(raw)
    return key if is_unique and key == raw else f"{key}-{path_sha256(class_name, file)[:8]}"


def repeated_keys(class_name: str, files: Names) -> np.ndarray:
    """The places of a class's files that would share a key with another one of it: int32, ascending."""
    if len(files) < 2 or _differ_plainly(class_name, files):
        return np.empty(0, np.int32)
    keys = [_clean_key(_raw_key(class_name, file)).lower() for file in files]
    counts = Counter(keys)
    return np.array([i for i, key in enumerate(keys) if counts[key] > 1], np.int32)


def _differ_plainly(class_name: str, files: Names) -> bool:
    """Whether all names differ in plain lower-case letters and digits between one beginning and one ending.

    Then so do their keys; this holds for most classes and costs a thousandth of making them.
    """
    stem, dot, _ = files.suffix.rpartition(b".")
    prefix = name_bytes(f"{class_name}_")
    # `1.jpg` and `a_1.jpg` of class `a` share a key: either all names begin with their class, or none does.
    all_begin = files.prefix.startswith(prefix)
    none_begins = not prefix.startswith(files.prefix) or b"_" not in files.middles + stem
    return (
        bool(dot)
        and (all_begin or none_begins)
        and not files.middles.translate(None, _PLAIN)
        and not (files.prefix + stem).translate(None, _IN_A_KEY)
        and len(prefix) + files.longest <= KEY_STEM_LENGTH
    )


def ambiguous_names(names: Sequence[str]) -> set[str]:
    """Class names that, joined to a file's stem, could give the key of another class's file."""
    # In lower case: some file systems and readers do not tell `A_x` from `a_x`.
    clean = [_NOT_IN_A_KEY.sub("-", name).lower() for name in names]
    counts = Counter(clean)
    known = set(clean)
    found = set()
    for name, spelling in zip(names, clean, strict=True):
        prefixes = (spelling[:i] for i, letter in enumerate(spelling) if letter == "_")
        if counts[spelling] > 1 or any(prefix in known for prefix in prefixes):
            found.add(name)
    return found


def _raw_key(class_name: str, file: str) -> str:
    stem = file.rpartition(".")[0]
    # ImageNet's own names start with their class already.
    return stem if stem.startswith(f"{class_name}_") else f"{class_name}_{stem}"


def _clean_key(raw: str) -> str:
    return _NOT_IN_A_KEY.sub("-", raw)[:KEY_STEM_LENGTH]
