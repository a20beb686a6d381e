"""Data sets with a distillation teacher (`kd`)."""

import dataclasses
import shutil

import numpy as np

from softshard.shards import Manifest, ShardWriter, read_shard
from softshard.shards.teacher_levels import encode_teacher_levels, num_kept


def random_teacher(rng, level_sizes):
    """Ids and probabilities [K]."""
    kept = num_kept(level_sizes)
    ids = [rng.permutation(size)[:k] for size, k in zip(level_sizes, kept, strict=True)]
    values = [np.sort(rng.random(k))[::-1] / k for k in kept]
    return np.concatenate(ids), np.concatenate(values).astype(np.float16)


def with_teacher(dataset, folder, level_sizes, change=lambda number, value: value):
    """A copy of a data set with the component `kd`; key to what its teacher says."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    manifest, said, records = Manifest.load(dataset), {}, []
    for shard in manifest.shards:
        with ShardWriter(folder / shard.name, [*manifest.components, "kd"]) as writer:
            for sample in read_shard(dataset / shard.name):
                said[sample.key] = random_teacher(rng, level_sizes)
                value = encode_teacher_levels(*said[sample.key], level_sizes)
                writer.write(sample.key, {**sample.parts, "kd": change(len(said) - 1, value)})
        records.append(writer.record)
    for path in (dataset / name for name in ("classes.npy", "tree.json")):
        if path.exists():
            shutil.copy(path, folder)
    dataclasses.replace(manifest, components=writer.suffixes, shards=tuple(records)).save(folder)
    return said
