"""What packing writes, and where it does not write."""

import fcntl
import json
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from packed_files import files, samples

from softshard.shards import (
    DataError,
    ImageRecipe,
    Manifest,
    PackOptions,
    UsageError,
    decode_label_map,
    encode_label_map,
    pack,
    verify,
)
from softshard.shards.images import store_image
from softshard.shards.manifest import load_sidecar


def test_every_image_is_packed_with_its_labels(source, tmp_path, options, table_tree):
    summary = pack(source, tmp_path / "set", options, tree=table_tree, workers=1)
    assert (summary.read, summary.packed, summary.bad) == (16, 16, 0)
    assert verify(tmp_path / "set", decode=True).problems == []
    found = samples(tmp_path / "set" / "train") | samples(tmp_path / "set" / "val")
    assert len(found) == 16
    for key, parts in found.items():
        name = key.split("_")[0]
        index = table_tree.class_index[name]
        image = (source / name / f"{key}.jpg").read_bytes()
        assert parts["jpg"] == store_image(image, options.image).jpeg
        assert parts["cls"] == str(index).encode()
        assert np.frombuffer(parts["hier.npy"][128:], "<i2").tolist() == table_tree.vectors()[index].tolist()
        assert msgpack.unpackb(parts["msgpack"]) == {"path": f"{name}/{key}.jpg", "size": [30, 40]}


def test_the_sidecar_has_the_classes_in_shard_order(packed_once):
    for name in ("train", "val"):
        classes = [int(parts["cls"]) for parts in samples(packed_once / name).values()]
        assert load_sidecar(packed_once / name, Manifest.load(packed_once / name)).tolist() == classes


def test_two_workers_give_the_bytes_of_one_and_so_does_a_second_time(source, tmp_path, options, table_tree):
    for name, workers in (("one", 1), ("two", 2), ("again", 2)):
        pack(source, tmp_path / name, options, tree=table_tree, workers=workers)
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "again")
    assert len(list((tmp_path / "one").rglob("*.tar"))) == 5


def test_the_seed_changes_the_order_and_nothing_else(source, tmp_path, options):
    for seed in (0, 1):
        pack(source, tmp_path / str(seed), replace(options, seed=seed), workers=1)
    one, other = (samples(tmp_path / seed / "train") for seed in "01")
    assert one == other
    assert list(one) != list(other)


def test_shards_are_sized_by_the_mean_of_their_samples_bytes(source, tmp_path):
    pack(source, tmp_path / "set", PackOptions(image=ImageRecipe(16), shard_bytes=20_000), workers=1)
    shards = Manifest.load(tmp_path / "set" / "train").shards
    mean = sum(shard.bytes - 1024 for shard in shards) / 16  # all 16 are in the estimate
    assert json.loads((tmp_path / "set" / "plan.json").read_bytes())["samples_per_shard"] == round(
        20_000 / mean
    )
    assert len(shards) > 1


def test_a_folder_of_something_else_is_refused(source, tmp_path, options):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"set: expected an empty or new folder, found 'thesis\.tex'$"):
        pack(source, tmp_path / "set", options, workers=1)


def test_a_folder_that_another_run_writes_is_refused(source, tmp_path, options):
    (tmp_path / "set").mkdir()
    with open(tmp_path / "set" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another softshard is writing there. Wait for it, or stop it"):
            pack(source, tmp_path / "set", options, workers=1)
    assert pack(source, tmp_path / "set", options, workers=1).packed == 16


def test_shards_do_not_go_into_their_source(source, options):
    for destination in (source, source / "out"):
        with pytest.raises(UsageError, match="expected a folder outside"):
            pack(source, destination, options)
    assert not (source / "out").exists()


def test_a_place_that_the_worker_processes_do_not_share_is_noticed(source, options):
    # fsspec's memory is one process's own: the shards of the others are gone with them.
    with pytest.raises(DataError, match="expected the shards just made, found none or others for 'train-"):
        pack(source, "memory://alone/set", options, workers=2)


def test_a_web_server_is_not_written_to(source, options):
    with pytest.raises(UsageError, match=r"expected a folder or a bucket to write to .* found 'https'"):
        pack(source, "https://user:secret@example.org/set", options)


def test_a_file_in_the_place_of_the_destination_is_refused(source, tmp_path, options):
    (tmp_path / "set").touch()
    with pytest.raises(UsageError, match="set: expected a folder, found a file"):
        pack(source, tmp_path / "set", options)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(
        UsageError, match="link: expected a folder, found a link to 'nowhere', which is not there"
    ):
        pack(source, tmp_path / "link", options)


@pytest.mark.parametrize(
    "wrong", [{"shard_bytes": 0}, {"shard_samples": 0}, {"max_bad": -0.1}, {"max_bad": 1.1}]
)
def test_a_wrong_option_is_a_wrong_call(wrong):
    with pytest.raises(UsageError, match="expected"):
        PackOptions(**wrong)


def test_no_worker_is_a_wrong_call(source, tmp_path, options):
    with pytest.raises(UsageError, match="workers: expected 1 or more, found 0"):
        pack(source, tmp_path / "set", options, workers=0)


def test_a_class_list_must_be_the_tree_s(source, tmp_path, options, table_tree):
    for names in (["dog", "bird", "oak"], ["bird", "dog"], ["bird", "dog", "oak", "animal"]):
        with pytest.raises(DataError) as caught:
            pack(source, tmp_path / "set", options, class_names=names, tree=table_tree, workers=1)
        assert f"expected the classes of the label tree {table_tree.fingerprint[:12]}, found others" in str(
            caught.value
        )
    assert not (tmp_path / "set").exists()
    pack(source, tmp_path / "set", options, class_names=["bird", "dog", "oak"], tree=table_tree, workers=1)
    assert Manifest.load(tmp_path / "set" / "train").class_names == table_tree.classes


def test_folders_outside_the_list_and_classes_without_folders_are_reported(source, tmp_path, options):
    summary = pack(source, tmp_path / "set", options, class_names=["oak", "elm", "dog"], workers=1)
    assert summary.dropped == (("bird", 5),)
    assert summary.without_images == ("elm",)
    assert Manifest.load(tmp_path / "set" / "train").class_names == ("oak", "elm", "dog")


def with_maps(options, folder, **changes):
    return replace(options, label_maps=folder, **changes)


def test_label_maps_are_packed_as_they_are(source, tmp_path, options, maps_maker):
    maps = maps_maker(source, tmp_path / "maps", 3)
    pack(source, tmp_path / "set", with_maps(options, maps), workers=2)
    found = samples(tmp_path / "set" / "train")
    for key, parts in found.items():
        assert parts["lmap"] == (maps / key.split("_")[0] / f"{key}.lmap").read_bytes()
    info = Manifest.load(tmp_path / "set" / "train").label_maps
    assert info is not None
    assert (info.top, info.rows, info.columns, info.num_classes) == (3, 4, 5, 3)
    assert decode_label_map(parts["lmap"])[0].shape == (3, 4, 5)


def test_a_missing_or_damaged_or_foreign_map_is_in_the_ledger(source, tmp_path, options, maps_maker):
    maps = maps_maker(source, tmp_path / "maps", 3)
    (maps / "bird" / "bird_0.lmap").unlink()
    (maps / "dog" / "dog_0.lmap").write_bytes((maps / "dog" / "dog_0.lmap").read_bytes()[:-1])
    one = np.zeros((1, 4, 5), int)
    (maps / "dog" / "dog_1.lmap").write_bytes(encode_label_map(one, one, num_classes=3))
    (maps / "oak" / "oak_0.lmap").write_bytes(bytes(5 * 2**20))
    summary = pack(source, tmp_path / "set", with_maps(options, maps), workers=1)
    assert (summary.packed, summary.bad) == (12, 4)
    ledger = [json.loads(line) for line in (tmp_path / "set" / "bad.jsonl").read_text().splitlines()]
    assert {entry["path"]: entry["kind"] for entry in ledger} == {
        "bird/bird_0.jpg": "no-label-map",
        "dog/dog_0.jpg": "bad-label-map",
        "dog/dog_1.jpg": "bad-label-map",
        "oak/oak_0.jpg": "bad-label-map",
    }
    reasons = " ".join(entry["reason"] for entry in ledger)
    assert "expected [K, P, Q] [3, 4, 5] over 3 classes, found [1, 4, 5] over 3" in reasons
    assert verify(tmp_path / "set").ok


def test_maps_of_another_label_space_stop_the_run(source, tmp_path, options, maps_maker):
    maps = maps_maker(source, tmp_path / "maps", 4)
    with pytest.raises(DataError, match=r"over 3 classes, found \[3, 4, 5\] over 4"):
        pack(source, tmp_path / "set", with_maps(options, maps), workers=1)


def test_a_folder_without_maps_is_an_error(source, tmp_path, options):
    (tmp_path / "maps").mkdir()
    with pytest.raises(
        DataError, match=r"maps: expected <class>/<stem>\.lmap for the source's images, found none"
    ):
        pack(source, tmp_path / "set", with_maps(options, tmp_path / "maps"), workers=1)
    with pytest.raises(
        UsageError, match=r"nowhere: expected a folder of <class>/<stem>\.lmap files, found none"
    ):
        pack(source, tmp_path / "set", with_maps(options, tmp_path / "nowhere"), workers=1)


def test_a_resume_with_maps_of_another_shape_is_refused(source, tmp_path, options, maps_maker):
    pack(source, tmp_path / "set", with_maps(options, maps_maker(source, tmp_path / "maps", 3)), workers=1)
    others = maps_maker(source, tmp_path / "others", 3, (3, 5, 5))
    (tmp_path / "set" / "train" / "train-000000.tar").unlink()
    with pytest.raises(
        UsageError,
        match=r"expected label maps of \[K, P, Q\] \[3, 4, 5\] as in the earlier run, found \[3, 5, 5\]",
    ):
        pack(source, tmp_path / "set", with_maps(options, others), workers=1)
