"""Label maps beside a data set: attached to copies of its shards, or as side shards that are joined later.

A side shard holds only `lmap` members, under the keys and in the order of the shard of the same name. Side shards are
small, can be made where the images are not to be copied, and several sets of them (other teachers) can belong to one
data set. `label_maps.json` says which, is written last, and `join_label_maps` makes a full data set of both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .added_component import NewComponent, attach, check_sidecars, finish, read_checked, settle
from .destination import Destination, open_destination
from .errors import DataError
from .files import join_url, read_limited
from .manifest import Manifest
from .manifest_check import is_shard_record
from .progress import progress_bar
from .schema import LMAP, MAX_MANIFEST_BYTES, SIDE_NAME
from .shard_files import dataset_name, dataset_path
from .teacher_info import LabelMapInfo, label_maps_problem
from .text_limits import counted
from .writer import ShardRecord

SIDE_FORMAT = "softshard-label-maps"
SIDE_VERSION = 1


@dataclass(frozen=True)
class SideMaps:
    """Label maps of a data set, in shards of their own.

    Attributes:
        name: of the data set.
        dataset_fingerprint: of the data set that they belong to.
        label_maps: geometry and teacher.
        shards: one record a shard, named like the data set's, in its order.
    """

    name: str
    dataset_fingerprint: str
    label_maps: LabelMapInfo
    shards: tuple[ShardRecord, ...]

    def save(self, folder: str | Path | Destination) -> None:
        """Write `label_maps.json`: the last file of a run."""
        content = {
            "format": SIDE_FORMAT,
            "version": SIDE_VERSION,
            "name": self.name,
            "dataset": self.dataset_fingerprint,
            "label_maps": self.label_maps.to_json(),
            "shards": [shard.to_json() for shard in self.shards],
        }
        open_destination(folder).write(SIDE_NAME, json.dumps(content, indent=1).encode("ascii"))

    @classmethod
    def load(cls, folder: str | Path) -> SideMaps:
        """Read `label_maps.json`.

        Raises:
            DataError: it is missing, damaged or of a newer version.
        """
        url = join_url(folder, SIDE_NAME)
        try:
            content = json.loads(read_limited(url, MAX_MANIFEST_BYTES))
            if content["format"] != SIDE_FORMAT:
                raise ValueError(f"format {content['format']!r}")
            if content["version"] != SIDE_VERSION:
                raise DataError(
                    f"{dataset_name(url)}: expected version {SIDE_VERSION}, found {content['version']!r}; it was written by "
                    "another softshard. Run: pip install -U softshard"
                )
            if problem := label_maps_problem(content["label_maps"]):
                raise ValueError(problem)
            for shard in content["shards"]:
                if not is_shard_record(shard):
                    raise ValueError(f"shard {shard!r:.80}")
            if not isinstance(content["name"], str) or not isinstance(content["dataset"], str):
                raise ValueError(f"data set {content['dataset']!r:.80}")
            return cls(
                content["name"],
                content["dataset"],
                LabelMapInfo(**content["label_maps"]),
                tuple(ShardRecord(**shard) for shard in content["shards"]),
            )
        except FileNotFoundError as error:
            raise DataError(
                f"{dataset_name(folder)}: expected side shards of label maps, found no {SIDE_NAME}, which is written "
                "last. Run `softshard maps make --side` again: it continues"
            ) from error
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{dataset_name(url)}: expected a description of side shards, found: {error!r}"
            ) from error

    def check_beside(self, source: Manifest, side: str | Path, dataset: str | Path) -> None:
        """Refuse label maps of another data set.

        Args:
            source: the data set's manifest.
            side: where the label maps lie, for messages.
            dataset: where the data set lies.

        Raises:
            DataError: both are named.
        """
        where, beside = dataset_name(side), dataset_name(dataset)
        again = "Make them for this data set: softshard maps make --side"
        if self.dataset_fingerprint != source.fingerprint:
            raise DataError(
                f"{where}: expected label maps of the data set {source.fingerprint[:12]} in {beside}, found those of "
                f"{self.dataset_fingerprint[:12]}. {again}"
            )
        expected = [(shard.name, shard.samples) for shard in source.shards]
        found = [(shard.name, shard.samples) for shard in self.shards]
        if found != expected:
            others = [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]]
            told = f"{len(found):,}"
            if len(found) == len(expected):
                (name, samples), (wanted, num_wanted) = others[0]
                told = f"{name!r} of {counted(samples, 'sample')} for {wanted!r} of {num_wanted:,}"
            raise DataError(
                f"{where}: expected side shards named like the {counted(len(expected), 'shard')} of {beside}, with as many "
                f"samples, found {told}; {SIDE_NAME} is damaged. {again}"
            )


def join_label_maps(dataset: str | Path, side: str | Path, destination: str | Path) -> Manifest:
    """Write a data set with the samples of one and the label maps of its side shards. No image is decoded.

    Args:
        dataset: folder or fsspec URL of the data set; label maps that it has are replaced.
        side: folder or URL of side shards that were made of it.
        destination: a new folder or fsspec URL, or that of an earlier run of the same call, which is continued.

    Returns:
        The manifest of the result.

    Raises:
        DataError: the side shards belong to another data set, or something is damaged.
        UsageError: the destination holds something else.
    """
    dataset, side = dataset_path(dataset), dataset_path(side)
    source, maps = Manifest.load(dataset), SideMaps.load(side)
    maps.check_beside(source, side, dataset)
    target = open_destination(destination)
    check_sidecars(dataset, source)
    content = {
        "join": {"dataset": source.fingerprint, "maps": [record.sha256 for record in maps.shards]},
        "label_maps": maps.label_maps.to_json(),
    }
    component = label_maps_component(maps.label_maps)
    target.make()
    with target.hold(), progress_bar(source.num_samples, "join", "img") as bar:
        plan_sha256, done = settle(target, content, source)
        for record, side_record in zip(source.shards, maps.shards, strict=True):
            if record.name not in done:
                with read_checked(dataset, record) as samples, read_checked(side, side_record) as beside:
                    pairs = ((sample.key, sample.parts[LMAP.suffix]) for sample in beside)
                    attach(target, record, samples, component.beside(source), LMAP.suffix, pairs, plan_sha256)
            bar.update(record.samples)
        return finish(target, dataset, source, component, plan_sha256)


def label_maps_component(label_maps: LabelMapInfo) -> NewComponent:
    """Label maps, as a component to be added."""
    return NewComponent(LMAP.suffix, {"label_maps": label_maps}, ("lz4", "zstandard"))
