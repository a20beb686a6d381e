"""What lies in packed folders."""

import msgpack

from softshard.shards import read_shard


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


def fields_by_path(folder):
    """A source's path -> all fields that its sample has in `msgpack`."""
    found = [msgpack.unpackb(parts["msgpack"]) for parts in samples(folder).values()]
    return {fields["path"]: fields for fields in found}
