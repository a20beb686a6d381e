"""Makes subsets: what there is to choose from, and the choice of classes and of images as a file records it.

class list, data set --> Pool --> choose_classes  merge_siblings  coarse_labels --> SubsetFile (classes)
data set, its samples' classes, maybe scores ----> choose_images                 --> SubsetFile (and images)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .choose_classes import check_num, confused_classes, groups_of_file, random_classes, random_groups
from .choose_images import choose_images, percents
from .coarse_labels import adjust_number, read_coarse_labels
from .confusion_file import load_confusion
from .difficulty import Difficulty, read_difficulty
from .errors import DataError, UsageError, check_choice
from .files import file_record
from .manifest import Manifest, load_tree, sample_classes
from .merge_siblings import ancestor_tree, merge_siblings
from .names import name_text
from .philox import check_seed
from .shard_files import dataset_name, dataset_path
from .shard_keys import each_shards_keys
from .storage import public_name
from .subset_configs import IMAGENET, imagenet_shortage, shortage
from .subset_file import ClassGroup, SubsetFile
from .subset_pool import Pool, training_set
from .text_limits import counted, some
from .tree import LabelTree

CLASS_METHODS = ("random", "groups", "siblings", "confusion", "coarse", "file")
IMAGE_METHODS = ("random", "stratified", "difficulty")
CAPS = ("class", "set")


@dataclass(frozen=True)
class ClassChoice:
    """How classes are chosen or grouped.

    Attributes:
        method: one of `CLASS_METHODS`.
        num: N; None only for `coarse` and `file`, which then take as many as there are.
        seed: of what is random, and of what decides between equals.
        exact: `siblings`: merge part of a family where whole ones do not meet N.
        tree: `siblings` and `coarse`: label tree instead of the data set's; beyond its roots WordNet goes on.
        file: `confusion`: the matrix; `coarse`: the table; `file`: the groups. A path or any fsspec URL.
        meanings: `coarse`: which classes a name of the table stands for, where it could be several.
        per_class: M, the images that each class shall have: a note says where there are fewer.
    """

    method: str
    num: int | None = None
    seed: int = 0
    exact: bool = False
    tree: LabelTree | None = None
    file: str | None = None
    meanings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    per_class: int | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_choice("method", self.method, CLASS_METHODS)
        needs_file = self.method in ("confusion", "coarse", "file")
        if needs_file != (self.file is not None):
            raise UsageError(
                f"method {self.method!r}: expected {'a file' if needs_file else 'no file'}, found {self.file!r}"
            )
        if self.num is None and self.method not in ("coarse", "file"):
            raise UsageError(f"method {self.method!r}: expected a number of classes, found none")
        for name, given, methods in (
            ("exact", self.exact, ("siblings",)),
            ("tree", self.tree is not None, ("siblings", "coarse")),
            ("meanings", bool(self.meanings), ("coarse",)),
        ):
            if given and self.method not in methods:
                raise UsageError(
                    f"{name}: expected method {' or '.join(map(repr, methods))}, found {self.method!r}"
                )


def make_class_subset(pool: Pool, choice: ClassChoice) -> SubsetFile:
    """Choose or group classes.

    Raises:
        UsageError: a number of classes that cannot be; a file that cannot be read.
        DataError: a file that says something else than it should; every problem is named.
    """
    names, num, notes = pool.names, choice.num or 0, []
    method: dict[str, Any] = {"name": choice.method, "num": choice.num, "seed": choice.seed}
    if choice.method == "random":
        groups = random_classes(names, num, choice.seed)
    elif choice.method == "groups":
        groups = random_groups(names, num, choice.seed)
    elif choice.method == "siblings":
        tree = ancestor_tree(names, choice.tree or pool.tree)
        groups, found_notes = merge_siblings(tree, num, choice.seed, exact=choice.exact)
        notes += found_notes
        method |= {"exact": choice.exact, "tree": tree.fingerprint, "relations": tree.rule.source}
    elif choice.method == "confusion":
        assert choice.file is not None
        groups = confused_classes(names, _confusion(pool, choice.file), num, choice.seed)
    elif choice.method == "coarse":
        groups, found_notes = _coarse_groups(pool, choice)
        notes += found_notes
        method["meanings"] = {name: list(meant) for name, meant in choice.meanings.items()}
    else:
        assert choice.file is not None
        groups = groups_of_file(choice.file, names)
        if choice.num not in (None, len(groups)):
            raise UsageError(
                f"{public_name(choice.file)}: expected {choice.num} classes, found {len(groups)}; change the file, or "
                "leave the number out"
            )
    if choice.file is not None:
        method["file"] = file_record(choice.file)
    if choice.per_class is not None:
        counts = pool.group_counts(groups)
        if counts is not None:
            note = shortage(counts, choice.per_class)
        elif pool.name == IMAGENET:
            note = imagenet_shortage([len(group.members) for group in groups], choice.per_class)
        else:
            note = "images were not counted: a list of classes has none. Choose from a data set to have them counted"
        notes += [note] if note else []
    return SubsetFile(groups, method, pool.source(), notes=tuple(notes))


def _confusion(pool: Pool, file: str) -> np.ndarray:
    """float64 [C, C] over the classes with images; the matrix may be over the whole class list."""
    if pool.names == pool.all_names:
        return load_confusion(file, pool.names)
    try:
        whole = load_confusion(file, pool.all_names)
    except DataError:  # of those with images alone, it may be
        return load_confusion(file, pool.names)
    kept = np.flatnonzero(np.isin(pool.all_names, pool.names))
    return whole[np.ix_(kept, kept)]


def _coarse_groups(pool: Pool, choice: ClassChoice) -> tuple[tuple[ClassGroup, ...], list[str]]:
    assert choice.file is not None
    labels = read_coarse_labels(choice.file, pool.names, choice.meanings)
    groups, notes = labels.groups, []
    if labels.uncovered:
        shown = some(labels.uncovered, show=str)
        notes.append(
            f"{counted(len(labels.uncovered), 'class')} left out, which the table does not have: {shown}"
        )
    if labels.num_ignored:
        ignored = counted(labels.num_ignored, "name")
        notes.append(f"the table has {ignored} of other classes than these {len(pool.names):,}")
    if choice.num is not None and choice.num != len(groups):
        members = [member for group in groups for member in group.members]
        check_num(members, choice.num)
        try:
            paths = _paths(ancestor_tree(members, choice.tree or pool.tree))
        except DataError as error:
            paths = {name: (name,) for name in members}
            first = str(error).splitlines()[0].partition(";")[0]
            notes.append(
                f"what is near is not known, so that sizes alone decide: {first}. Give a --tree of these classes"
            )
        groups, found_notes = adjust_number(groups, choice.num, paths)
        notes += found_notes
    return groups, notes


def _paths(tree: LabelTree) -> dict[str, tuple[str, ...]]:
    """For each class the names from its root to itself."""
    paths: dict[str, tuple[str, ...]] = {}
    for node in np.argsort(tree.levels, kind="stable").tolist():
        parent = int(tree.parents[node])
        above = paths[tree.classes[parent]] if parent >= 0 else ()
        paths[tree.classes[node]] = (*above, tree.classes[node])
    return paths


@dataclass(frozen=True)
class ImageChoice:
    """How images are chosen.

    Attributes:
        per_class: M.
        method: one of `IMAGE_METHODS`.
        seed: of everything that is random.
        scores: `difficulty`: file of scores; a path or any fsspec URL.
        cap: `difficulty`: `class`: each class has its own cap and M images; `set`: one cap for all, M on average.
        allow_fewer: take all of a class that has fewer than M.
    """

    per_class: int
    method: str = "random"
    seed: int = 0
    scores: str | None = None
    cap: str = "class"
    allow_fewer: bool = False

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_choice("method", self.method, IMAGE_METHODS)
        check_choice("cap", self.cap, CAPS)
        if (self.method == "difficulty") != (self.scores is not None):
            raise UsageError(
                f"method {self.method!r}: expected {'scores' if self.scores is None else 'no scores'}, found "
                f"{self.scores!r}; softshard subset score makes them"
            )
        if self.cap == "set" and self.method != "difficulty":
            raise UsageError(f"cap 'set': expected the method 'difficulty', found {self.method!r}")


def make_image_subset(
    dataset: str | Path, choice: ImageChoice, classes: SubsetFile | None = None
) -> SubsetFile:
    """Choose images of a data set.

    Args:
        dataset: folder or fsspec URL of a data set; of a local folder with `train`, that.
        choice: how.
        classes: chosen or grouped before; by default all classes that have images.

    Raises:
        UsageError: see ImageChoice.
        DataError: classes with fewer than M images; scores that do not fit (see `read_difficulty`), or are of keys that
            the data set does not have; the data set is damaged.
    """
    folder = dataset_path(training_set(dataset) or dataset)
    manifest = Manifest.load(folder)
    stored = sample_classes(folder, manifest)
    were_chosen = classes is not None
    if classes is None:
        pool = Pool.open(folder)
        groups = tuple(ClassGroup.single(name) for name in pool.names)
        classes = SubsetFile(groups, {"name": "all"}, pool.source())
    classes = classes.without_keys()
    relabelling = classes.relabelling(manifest.class_names, load_tree(folder, manifest))
    group_of = relabelling.class_map.astype(np.int64)[stored]
    method: dict[str, Any] = {
        "name": choice.method,
        "per_class": choice.per_class,
        "seed": choice.seed,
        **({"allow_fewer": True} if choice.allow_fewer else {}),
    }
    notes, bins = list(classes.notes), None
    if choice.scores is not None:
        of_labels = relabelling.fingerprint if were_chosen else None
        scores = read_difficulty(choice.scores, manifest.fingerprint, of_labels)
        probabilities = _probabilities(folder, manifest, scores, choice.scores)
        unscored = np.isnan(probabilities) & (group_of >= 0)
        group_of[unscored] = -1
        bins = percents(np.nan_to_num(probabilities))
        method |= {
            "cap": choice.cap,
            "scores": file_record(choice.scores)
            | {name: scores.header[name] for name in ("model", "seed", "labels") if name in scores.header},
        }
        if unscored.any():
            notes.append(f"not chosen from: {counted(int(unscored.sum()), 'image')} without a score")
        if not scores.says_halves:
            notes.append("the scores do not say whether a model scored images that it was trained on")
        elif scores.header and scores.labels is None and were_chosen and not relabelling.is_identity:
            notes.append(
                f"the scores are of the data set's own {manifest.num_classes:,} classes, not of the "
                f"{len(classes.groups):,} of --classes"
            )
    elif choice.method == "stratified":
        bins = stored
    numbers = choose_images(
        group_of,
        classes.class_names,
        choice.per_class,
        choice.seed,
        bins=bins,
        whole_set=choice.cap == "set",
        allow_fewer=choice.allow_fewer,
    )
    keys = _keys_of(folder, manifest, numbers)
    source = {"name": manifest.name, "fingerprint": manifest.fingerprint}
    return replace(classes, keys=keys, image_method=method, image_source=source, notes=tuple(notes))


def count_validation(dataset: str | Path, subset: SubsetFile) -> int:
    """How many samples of a validation set are of a subset's classes."""
    folder = dataset_path(dataset)
    manifest = Manifest.load(folder)
    class_map = subset.relabelling(manifest.class_names).class_map
    return int((class_map[sample_classes(folder, manifest)] >= 0).sum())


def _probabilities(folder: str | Path, manifest: Manifest, scores: Difficulty, where: str) -> np.ndarray:
    """float64 [samples], each sample's score, NaN where it has none.

    Raises:
        DataError: scores of keys that the data set does not have.
    """
    found = np.concatenate(
        [scores.of(list(map(name_text, keys))) for keys in each_shards_keys(folder, manifest)]
    )
    num_unknown = len(scores.hashes) - int((~np.isnan(found)).sum())
    if num_unknown > 0:
        raise DataError(
            f"{public_name(where)}: expected scores of images of {dataset_name(folder)}, found {num_unknown:,} of "
            f"{len(scores.hashes):,} whose keys it does not have; they are of another data set"
        )
    return found


def _keys_of(folder: str | Path, manifest: Manifest, numbers: np.ndarray) -> tuple[str, ...]:
    keys: list[str] = []
    first = 0
    for shard in each_shards_keys(folder, manifest):
        start, stop = np.searchsorted(numbers, [first, first + len(shard)])
        keys += [name_text(shard[i - first]) for i in numbers[start:stop].tolist()]
        first += len(shard)
    return tuple(keys)
