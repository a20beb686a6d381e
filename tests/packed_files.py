"""What lies in packed folders."""

import dataclasses
import shutil

import msgpack

from softshard.shards import Manifest, ShardWriter, read_shard
from softshard.shards.index import tar_members


def files(folder):
    """Every file below a folder, by name; the lock is empty and of no account."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def samples(folder):
    """key -> components of every sample, in the order of the shards."""
    return {sample.key: sample.parts for path in sorted(folder.glob("*.tar")) for sample in read_shard(path)}


def scan_tar(path):
    """A tar's members, without their data."""
    with open(path, "rb") as file:
        return list(tar_members(file, path.name))


def fields_by_path(folder):
    """A source's path -> all fields that its sample has in `msgpack`."""
    found = [msgpack.unpackb(parts["msgpack"]) for parts in samples(folder).values()]
    return {fields["path"]: fields for fields in found}


def write_again(dataset, folder, parts_of, components=None):
    """A copy of a data set whose samples have the components that `parts_of(sample)` gives, in their order."""
    manifest, records = Manifest.load(dataset), []
    folder.mkdir(exist_ok=True)
    for shard in manifest.shards:
        with ShardWriter(folder / shard.name, components or manifest.components) as writer:
            for sample in read_shard(dataset / shard.name):
                writer.write(sample.key, parts_of(sample))
        records.append(writer.record)
    for name in ("classes.npy", "tree.json"):
        if (dataset / name).exists():
            shutil.copy(dataset / name, folder)
    dataclasses.replace(manifest, components=writer.suffixes, shards=tuple(records)).save(folder)
    return folder
