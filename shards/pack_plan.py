"""What a packing run is about to do: its options, its plan, and what all its shard tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .classes import class_list_sha256
from .errors import DataError, StorageError, UsageError, check_choice, check_share
from .images import ImageRecipe, pixel_stack
from .index import padded
from .indexed_folders import name_by_index
from .labelmap import read_map_header
from .listing import Listing, in_order
from .pack_soft import check_has_rows, soft_columns
from .philox import PURPOSE_PLAN, check_seed, permutation
from .plan import Plan, PlannedSample, check_shard_size, make_plan
from .progress import progress_bar
from .schema import DEFAULT_SHARD_BYTES, TAR_BLOCK_BYTES
from .shard_task import Job, make_sample, map_path, read_map_file
from .sources import open_source
from .stored_vocabulary import Vocabulary
from .subset_file import SubsetFile
from .tree import LabelTree

_MAPS_LOOKED_FOR = 16_384  # images; a wrong folder is told at once
FOLDERS = ("name", "index")
SIZE_SAMPLE = 256  # images encoded to estimate how many go into a shard


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        image: size, resize and quality of the stored images.
        min_images: classes with fewer images are left out.
        val_per_class: images of each class for `val`; 0 makes no such split.
        val_split: `hash` or `lexical`.
        label_maps: folder of label maps, or None: each lies at its image's path below the source, with the
            ending `.lmap` (`<class>/<stem>.lmap`; `train/<class>/<stem>.lmap` of a source that is split already).
        shard_bytes: wanted size of a shard.
        shard_samples: samples of a shard instead; nothing is measured then.
        seed: of the global shuffle.
        max_bad: share of unusable inputs that stops the run; ten are always allowed, with 0 none.
        folders: `name`: class folders are called like their classes; `index`: like their places in the class list,
            from 0, as in ImageNetV2.
        subset: file of `softshard subset classes`: its classes and groups are the class list, and class folders become
            what it says; others are left out.
        vocabulary: of the list's column `tags`, whose names are packed as indices into it; None leaves them metadata.
        weights: how the list's column `weights` was made ({} where nobody knows), whose class weights are packed; None
            leaves them metadata.
        tags: how the tags were made, for the manifest; None where nobody knows.
    """

    image: ImageRecipe = field(default_factory=ImageRecipe)
    min_images: int = 1
    val_per_class: int = 0
    val_split: str = "hash"
    label_maps: Path | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES
    shard_samples: int | None = None
    seed: int = 0
    max_bad: float = 0.001
    folders: str = "name"
    subset: SubsetFile | None = None
    vocabulary: Vocabulary | None = None
    weights: Mapping[str, Any] | None = None
    tags: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_shard_size(self.shard_bytes, self.shard_samples)
        check_share("max_bad", self.max_bad)
        check_choice("folders", self.folders, FOLDERS)
        if self.subset is not None:
            for found, is_there in (
                ("chosen images", self.subset.keys is not None),
                ("folders called by their places", self.folders == "index"),
                ("label maps, which are over the classes before", self.label_maps is not None),
            ):
                if is_there:
                    raise UsageError(
                        f"subset: expected the classes of folders called like them, found {found}. Pack all of it, then "
                        "read it through the subset, or write that out: softshard reshard --subset"
                    )

    def to_json(self) -> dict[str, Any]:
        """What decides the bytes; not where the label maps lie, nor the budget."""
        return {
            **asdict(self.image),
            "min_images": self.min_images,
            "val_per_class": self.val_per_class,
            "val_split": self.val_split,
            "label_maps": self.label_maps is not None,
            "shard_bytes": self.shard_bytes if self.shard_samples is None else None,
            "shard_samples": self.shard_samples,
            "seed": self.seed,
            # Not where it is the default, so that plans made before it was thought of stay the same.
            **({} if self.folders == "name" else {"folders": self.folders}),
            **({} if self.subset is None else {"subset": self.subset.record()}),
            **({} if self.vocabulary is None else {"vocabulary": self.vocabulary.sha256}),
            **({} if self.weights is None else {"weights": dict(self.weights)}),
            **({} if self.vocabulary is None or not self.tags else {"tags": dict(self.tags)}),
        }


def plan_source(
    source: str | Path,
    options: PackOptions,
    class_names: Sequence[str] | None = None,
    tree: LabelTree | None = None,
    earlier: Listing | None = None,
) -> tuple[Listing, Plan]:
    """List a source, unless its listing is at hand, and plan its packing; nothing is written, no image opened."""
    listed_names = class_names if tree is None else tree.classes
    class_of = None
    if options.subset is not None:
        if class_names is not None:
            raise UsageError("pack: expected a class list or a subset, which has its own, found both")
        listed_names, class_names, class_of = None, options.subset.class_names, options.subset.class_of
    if tree is not None:
        if class_names is not None and tuple(class_names) not in (
            tree.classes,
            tree.classes[: tree.num_listed],
        ):
            raise DataError(
                f"class list {class_list_sha256(class_names)[:12]}: expected the classes of the label tree "
                f"{tree.fingerprint[:12]}, found others; build the tree from this list. "
                "Run: softshard tree build"
            )
        class_names = tree.classes
    listing = earlier
    if listing is None:
        with progress_bar(None, "list", "img") as bar:
            listing = open_source(source, listed_names, bar.update)
    if options.vocabulary is not None or options.weights is not None:
        check_has_rows(listing)
    plan = make_plan(
        listing if options.folders == "name" else name_by_index(listing, class_names),
        class_names=class_names if class_names is not None else listing.class_names,
        class_of=class_of,
        min_images=options.min_images,
        val_per_class=options.val_per_class,
        val_split=options.val_split,
        seed=options.seed,
        options={**options.to_json(), "tree": tree.fingerprint if tree else None},
    )
    return listing, plan


def make_job(listing: Listing, plan: Plan, options: PackOptions, tree: LabelTree | None) -> Job:
    """What all shard tasks of a run have in common."""
    return Job(
        storage=listing.files,
        plan_sha256=plan.sha256,
        pixel_stack=pixel_stack(),
        image=options.image,
        label_maps=options.label_maps,
        map_shape=_first_map_shape(plan, options.label_maps),
        num_classes=len(plan.class_names),
        vectors=tree.vectors() if tree else None,
        soft=soft_columns(
            options.vocabulary,
            options.weights,
            plan.class_names,
            None if options.subset is None else options.subset.class_of,
        ),
    )


def _first_map_shape(plan: Plan, folder: Path | None) -> tuple[int, int, int] | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of <class>/<stem>.lmap files, found none")
    damaged = ""
    looked_at = 0
    for split in plan.splits:
        for start, stop in split.shard_bounds(SIZE_SAMPLE):
            if looked_at >= _MAPS_LOOKED_FOR:
                break
            looked_at += stop - start
            for sample in split.samples(start, stop):
                file = map_path(folder, sample.path)
                if file.is_file():
                    try:
                        return read_map_header(read_map_file(file), str(file)).shape
                    except DataError as error:
                        damaged = damaged or f"; {error}"  # the ledger names them all in the end
    raise DataError(
        f"{folder}: expected <class>/<stem>.lmap for the source's images, found none that can be read for the first "
        f"{looked_at:,} of them (the names are the images' paths below the source, with another ending){damaged}"
    )


def estimate_shard(plan: Plan, options: PackOptions, job: Job) -> tuple[int, float]:
    """Samples of a shard, and their mean bytes in a tar, from up to 256 samples chosen by the seed.

    Returns:
        (samples of a shard, bytes); 0 bytes where no sample could be read.

    Raises:
        StorageError: the source is away.
    """
    split = plan.splits[0]
    order = permutation(options.seed, PURPOSE_PLAN, len(plan.splits), 0, len(split))
    samples = split.files.samples(split.numbers[order[:SIZE_SAMPLE]])

    def tar_bytes(sample: PlannedSample) -> int:
        try:
            parts = make_sample(job, sample)
        except StorageError:
            raise
        except (DataError, OSError):
            return 0  # counted, and put into the ledger, when its shard is made
        return sum(TAR_BLOCK_BYTES + padded(len(data)) for data in parts.values())

    sizes = []
    with progress_bar(len(samples), "estimate", "img") as bar:
        for size in in_order(job.storage, tar_bytes, samples):
            bar.update(1)
            if size:
                sizes.append(size)
    mean = float(np.mean(sizes)) if sizes else 0.0
    if options.shard_samples is not None:
        return options.shard_samples, mean
    return (max(1, round(options.shard_bytes / mean)) if mean else SIZE_SAMPLE), mean
