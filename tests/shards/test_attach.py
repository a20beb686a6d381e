"""Label maps and label vectors added by reshard: the result is what packing with them gives, or nothing."""

import json
import re
import shutil

import msgpack
import numpy as np
import pytest
from packed_files import samples

from softshard.shards import (
    DataError,
    LabelTree,
    Manifest,
    PackOptions,
    ReshardOptions,
    ShardWriter,
    UsageError,
    encode_label_map,
    pack,
    read_shard,
    reshard,
    verify,
)
from softshard.shards.attach import check_maps
from softshard.shards.cli import main
from softshard.shards.gather import index_samples
from softshard.shards.manifest import save_sidecar


@pytest.fixture
def bare(source, tmp_path, options, table_tree):
    """`train` as `packed_once` has it, but with images and classes only."""
    # The class list of the tree, with its inner nodes.
    pack(source, tmp_path / "bare", options, class_names=table_tree.classes, workers=1)
    return tmp_path / "bare" / "train"


@pytest.fixture
def maps(source, tmp_path, maps_maker, table_tree):
    return maps_maker(source, tmp_path / "maps", len(table_tree.classes))


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_what_is_added_is_what_packing_gives(bare, maps, packed_once, tmp_path, table_tree):
    assert Manifest.load(bare).components == ("jpg", "cls", "msgpack")
    options = ReshardOptions(shard_samples=4, tree=table_tree, label_maps=maps)
    manifest = reshard([bare], tmp_path / "set", options, workers=2)
    expected = Manifest.load(packed_once / "train")
    assert shards(tmp_path / "set") == shards(packed_once / "train")
    assert manifest.components == expected.components
    assert manifest.label_maps == expected.label_maps
    assert (manifest.tree_sha256, manifest.num_levels) == (expected.tree_sha256, expected.num_levels)
    assert verify(tmp_path / "set", decode=True).problems == []


def test_one_at_a_time_gives_the_same(bare, maps, packed_once, tmp_path, table_tree):
    reshard([bare], tmp_path / "maps-only", ReshardOptions(label_maps=maps))
    assert Manifest.load(tmp_path / "maps-only").components == ("jpg", "cls", "lmap", "msgpack")
    reshard([tmp_path / "maps-only"], tmp_path / "set", ReshardOptions(shard_samples=4, tree=table_tree))
    assert shards(tmp_path / "set") == shards(packed_once / "train")


def test_components_that_are_there_are_replaced(packed_once, source, maps_maker, tmp_path):
    other = LabelTree.from_table(
        ["bird", "dog", "oak", "animal", "plant"],
        [("bird", "animal"), ("dog", "animal"), ("oak", "plant"), ("animal", "plant"), ("plant", "")],
    )
    maps = maps_maker(source, tmp_path / "maps", 5, (2, 3, 3))
    options = ReshardOptions(tree=other, label_maps=maps, shuffle=2)
    manifest = reshard([packed_once / "train"], tmp_path / "set", options)
    assert manifest.tree_sha256 == other.fingerprint
    assert (manifest.label_maps.top, manifest.label_maps.rows, manifest.label_maps.columns) == (2, 3, 3)
    assert verify(tmp_path / "set", decode=True).problems == []
    for parts in samples(tmp_path / "set").values():
        path = msgpack.unpackb(parts["msgpack"])["path"]
        assert parts["lmap"] == (maps / path).with_suffix(".lmap").read_bytes()


def test_data_sets_that_differ_only_in_what_is_replaced_fit_together(
    packed_once, bare, maps, tmp_path, table_tree
):
    options = ReshardOptions(tree=table_tree, label_maps=maps)
    manifest = reshard([bare, packed_once / "val"], tmp_path / "all", options)
    assert manifest.num_samples == 16
    assert verify(tmp_path / "all", decode=True).ok


def test_maps_are_added_to_samples_behind_a_url(serve, bare, maps, tmp_path, table_tree):
    options = ReshardOptions(label_maps=maps, tree=table_tree, shard_samples=6)
    reshard([bare], tmp_path / "a", options)
    reshard([f"{serve(bare.parent)}/train"], tmp_path / "b", options)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def test_shards_are_sized_with_what_is_added(bare, maps, tmp_path):
    manifest = reshard([bare], tmp_path / "set", ReshardOptions(shard_bytes=15_000, label_maps=maps))
    total = sum(shard.bytes - 1024 for shard in manifest.shards)
    assert len(manifest.shards) == -(-total // (15_000 - 1024))


# ---- What is recorded


def test_plan_and_manifest_tell_fingerprints_and_no_path(bare, maps, tmp_path, table_tree):
    options = ReshardOptions(label_maps=maps, tree=table_tree)
    added = reshard([bare], tmp_path / "a", options).recipe["reshard"]["added"]
    assert added["hier.npy"] == {"tree": table_tree.fingerprint}
    assert len(added["lmap"]["sha256"]) == 64
    moved = shutil.copytree(maps, tmp_path / "moved")
    again = reshard([bare], tmp_path / "b", ReshardOptions(label_maps=moved, tree=table_tree, shuffle=1))
    assert again.recipe["reshard"]["added"] == added
    for name in ("plan.json", "manifest.json"):
        assert str(maps) not in (tmp_path / "a" / name).read_text()


def test_other_maps_are_another_run(bare, maps, tmp_path):
    reshard([bare], tmp_path / "set", ReshardOptions(label_maps=maps))
    one = np.zeros((3, 4, 5), int) + np.arange(3)[:, None, None]
    for name in ("dog_0", "dog_1"):  # one of them may be in val
        (maps / "dog" / f"{name}.lmap").write_bytes(encode_label_map(one, one, num_classes=5))
    (tmp_path / "set" / "manifest.json").unlink()
    with pytest.raises(
        UsageError, match=r"of another run \(reshard\.added differ\)\. Write into a new folder"
    ):
        reshard([bare], tmp_path / "set", ReshardOptions(label_maps=maps))


# ---- Refused, before anything is written


def test_every_missing_or_bad_map_is_named_and_nothing_is_written(bare, maps, tmp_path):
    kept = [
        msgpack.unpackb(parts["msgpack"])["path"].removesuffix(".jpg") for parts in samples(bare).values()
    ]
    one = np.zeros((1, 4, 5), int)
    damages = {
        kept[1]: (None, "expected a label map .*, found none"),
        kept[3]: (b"SSLM", "expected 28 to 4194304 bytes, found 4"),
        kept[4]: (
            encode_label_map(one, one, num_classes=5),
            r"expected \[K, P, Q\] \[3, 4, 5\] as the first map has, found \[1, 4, 5\]",
        ),
        kept[6]: (encode_label_map(one, one, num_classes=7), "expected a label map over 5 classes, found 7"),
        kept[9]: (None, "expected a label map .*, found none"),
    }
    for stem, (content, _) in damages.items():
        file = maps / f"{stem}.lmap"
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        reshard([bare], tmp_path / "set", ReshardOptions(label_maps=maps))
    *lines, last = str(caught.value).splitlines()
    assert len(lines) == 5
    for line, (stem, (_, message)) in zip(lines, damages.items(), strict=True):
        assert stem in line
        assert re.search(message, line), line
    assert (
        "expected a label map for each of 13 samples, found 5 missing or bad; nothing has been written"
        in last
    )
    assert not (tmp_path / "set").exists()


def test_classes_that_are_left_out_need_no_maps(bare, maps, tmp_path):
    shutil.rmtree(maps / "oak")
    with pytest.raises(DataError, match="found 3 missing or bad"):
        reshard([bare], tmp_path / "set", ReshardOptions(label_maps=maps))
    assert (
        reshard(
            [bare], tmp_path / "set", ReshardOptions(label_maps=maps, classes=("dog", "bird"))
        ).num_samples
        == 10
    )


def test_another_folder_is_told_in_one_line(bare, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^.*empty: expected label maps of 13 samples, found none.*\.lmap$"):
        reshard([bare], tmp_path / "set", ReshardOptions(label_maps=tmp_path / "empty"))
    with pytest.raises(UsageError, match=r"expected a folder of <class>/<stem>\.lmap files, found none"):
        reshard([bare], tmp_path / "set", ReshardOptions(label_maps=tmp_path / "nowhere"))


def test_a_tree_of_other_classes_is_refused_with_both_fingerprints(bare, tmp_path):
    other = LabelTree.from_table(["bird", "dog"], [("bird", "animal"), ("dog", "animal")])
    with pytest.raises(DataError) as caught:
        reshard([bare], tmp_path / "set", ReshardOptions(tree=other))
    text = str(caught.value)
    assert Manifest.load(bare).classes_sha256[:12] in text
    assert text.startswith(f"label tree {other.fingerprint[:12]}: expected the class list ")


@pytest.mark.parametrize("field", ["tree", "label_maps"])
def test_a_component_is_added_or_dropped(table_tree, tmp_path, field):
    options = {"tree": table_tree, "label_maps": tmp_path}
    suffix = {"tree": "hier.npy", "label_maps": "lmap"}[field]
    with pytest.raises(UsageError, match=f"expected '{suffix}' to be added or dropped, found both"):
        ReshardOptions(drop=(suffix,), **{field: options[field]})


def rename_first(folder, path):
    """Give the first sample another original path, with hashes that fit."""
    manifest = Manifest.load(folder)
    records, classes = [], []
    for i, record in enumerate(manifest.shards):
        samples = list(read_shard(folder / record.name))
        with ShardWriter(folder / record.name, manifest.components) as writer:
            for j, sample in enumerate(samples):
                parts = dict(sample.parts)
                if i == j == 0:
                    parts["msgpack"] = msgpack.packb({"path": path, "size": [30, 40]})
                classes.append(int(parts["cls"]))
                writer.write(sample.key, parts)
        records.append(writer.record)
    content = json.loads((folder / "manifest.json").read_bytes())
    content["shards"] = [record.to_json() for record in records]
    content["sidecar"]["sha256"] = save_sidecar(folder, np.array(classes))
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_path_that_climbs_out_of_the_folder_is_refused(bare, maps, tmp_path):
    shutil.copy(next((maps / "dog").iterdir()), tmp_path / "secret.lmap")
    rename_first(bare, "dog/../../secret.jpg")
    with pytest.raises(
        DataError, match=r"^dog/\.\./\.\./secret\.jpg: expected an image's path below its source"
    ):
        reshard([bare], tmp_path / "set", ReshardOptions(label_maps=maps))


def test_a_name_that_is_not_utf8_has_its_map(source, maps, options, tmp_path, table_tree):
    stem = "b\udcffrd"
    (source / "bird" / "bird_0.jpg").rename(source / "bird" / f"{stem}.jpg")
    (maps / "bird" / "bird_0.lmap").rename(maps / "bird" / f"{stem}.lmap")
    with_maps = PackOptions(**{**vars(options), "label_maps": maps})
    for name, opts in (("with", with_maps), ("without", options)):
        pack(source, tmp_path / name, opts, class_names=table_tree.classes, workers=1)
    for split in ("train", "val"):
        sources = [tmp_path / "without" / split]
        reshard(sources, tmp_path / "set" / split, ReshardOptions(shard_samples=4, label_maps=maps))
        assert shards(tmp_path / "set" / split) == shards(tmp_path / "with" / split)


def test_a_map_that_changes_after_it_was_checked_is_noticed(bare, maps):
    table = index_samples([(bare, Manifest.load(bare))], (), lambda _: None, with_paths=True)
    added = check_maps(maps, table, np.arange(13), 5, 1, lambda _: None)
    path = table.path(2)
    assert added.read(2, path) == (maps / path).with_suffix(".lmap").read_bytes()
    (maps / path).with_suffix(".lmap").write_bytes(b"other")
    with pytest.raises(DataError, match="expected the label map that was checked, found other bytes"):
        added.read(2, path)
    (maps / path).with_suffix(".lmap").unlink()
    with pytest.raises(DataError, match="expected the label map that was checked, found: "):
        added.read(2, path)


def test_reshard_adds_levels_and_maps_from_the_command_line(bare, maps, tmp_path, table_tree, capsys):
    table_tree.save(tmp_path / "tree.json")
    options = ["--tree", str(tmp_path / "tree.json"), "--label-maps", str(maps), "--json"]
    assert main(["reshard", str(bare), str(tmp_path / "set"), *options]) == 0
    assert json.loads(capsys.readouterr().out)["components"] == ["jpg", "cls", "hier.npy", "lmap", "msgpack"]
    assert main(["reshard", str(bare), str(tmp_path / "other"), "--drop", "lmap", *options]) == 2
    assert main(["reshard", str(bare), str(tmp_path / "other"), "--tree", "nowhere.json"]) == 2
