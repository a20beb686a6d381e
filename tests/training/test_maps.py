"""A real teacher over a real, tiny data set: the maps are its dense prediction, everything else stays as it was."""

import json
import shutil
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import timm
import torch
from packed_files import samples
from tiny_maps import NO_SHIFT, OPTIONS, SIZE

from softshard.loaders import Augment, Cache, Loader
from softshard.shards import DataError, Manifest, UsageError, decode_label_map, verify
from softshard.shards.images import pixel_stack
from softshard.training import maps as maps_module
from softshard.training.dense import DenseTeacher
from softshard.training.maps import MapOptions, Teacher, make_label_maps


def test_a_map_is_the_teachers_best_classes_of_every_cell(noisy, map_teacher, noisy_maps):
    folder, _ = noisy_maps
    parts = samples(folder)
    options = dict(
        augment=Augment.evaluation(SIZE), dtype="float32", shuffle=False, last_batch="pad", **NO_SHIFT
    )
    with Loader(noisy, batch_size=9, num_threads=1, **options) as loader:
        batch = next(iter(loader))
    with torch.inference_mode():
        dense_NCPQ = DenseTeacher(map_teacher.model)(batch.images)
    for i, key in enumerate(batch.keys):
        scores, ids = decode_label_map(parts[key]["lmap"])
        expected, order = dense_NCPQ[i].sort(dim=0, descending=True)
        assert scores.shape == (2, 3, 3)
        np.testing.assert_allclose(scores, expected[:2], atol=2e-3)  # float16, and another batch size
        assert (ids == order[:2].numpy()).all()


def test_every_other_component_keeps_its_bytes_and_the_result_verifies(noisy, noisy_maps):
    folder, manifest = noisy_maps
    before, after = samples(noisy), samples(folder)
    assert list(before) == list(after)
    assert all({**parts, "lmap": after[key]["lmap"]} == after[key] for key, parts in before.items())
    assert verify(folder, decode=True).problems == []
    assert manifest == Manifest.load(folder)
    assert (manifest.label_maps.top, manifest.label_maps.rows, manifest.label_maps.columns) == (2, 3, 3)
    assert manifest.label_maps.teacher["model"] == "resnet10t"
    assert manifest.fingerprint != Manifest.load(noisy).fingerprint


def test_the_loader_pools_the_maps_that_were_made(noisy_maps):
    folder, manifest = noisy_maps
    with Loader(folder, batch_size=4, targets="relabel", augment=Augment(size=32), num_threads=1) as loader:
        batch = next(iter(loader))
    assert batch.targets.shape == (4, manifest.num_classes)
    torch.testing.assert_close(batch.targets.sum(dim=1), torch.ones(4))


def test_scores_are_uint8_by_default_and_what_compressed_them_is_recorded(
    noisy, map_teacher, noisy_maps, tmp_path
):
    copy = shutil.copytree(noisy, tmp_path / "copy")
    replace(Manifest.load(copy), pixel_stack={"pillow": "1.0", "zstandard": "0.1"}).save(copy)
    options = MapOptions(size=SIZE, top=2, batch_size=2)
    found = make_label_maps(copy, tmp_path / "out", map_teacher, options, num_threads=1)
    assert found.label_maps.teacher["scores"] == "uint8"
    assert noisy_maps[1].label_maps.teacher["scores"] == "float16"
    ours, theirs = samples(tmp_path / "out"), samples(noisy_maps[0])
    for key, parts in ours.items():
        scores, _ = decode_label_map(parts["lmap"])
        before, _ = decode_label_map(theirs[key]["lmap"])
        # A step at most, which is a 63rd of the range at most, and float16's own rounding.
        assert np.abs(scores - before).max() <= np.ptp(before) / 60
    versions = {package: pixel_stack()[package] for package in ("lz4", "zstandard")}
    assert found.pixel_stack == {"pillow": "1.0", **versions}
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert {package: plan[package] for package in versions} == versions


def test_the_same_teacher_gives_the_same_bytes(noisy, map_teacher, noisy_maps, tmp_path):
    _, manifest = noisy_maps
    again = make_label_maps(noisy, tmp_path / "again", map_teacher, OPTIONS, num_threads=2)
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in manifest.shards]


def test_a_destination_with_files_in_it_is_refused(noisy, map_teacher, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"expected an empty or new folder, found 'mine.txt'"):
        make_label_maps(noisy, tmp_path, map_teacher, OPTIONS)


@pytest.mark.parametrize("error", [DataError("damaged"), KeyboardInterrupt()])
def test_an_interrupted_run_continues_with_the_shards_that_are_missing(
    noisy, map_teacher, noisy_maps, tmp_path, monkeypatch, error
):
    plain, encoded = maps_module.encode_label_map, []

    def encode(*args, **options):
        encoded.append(1)
        if len(encoded) == 8:  # in the third of three shards
            raise error
        return plain(*args, **options)

    out = tmp_path / "out"
    monkeypatch.setattr(maps_module, "encode_label_map", encode)
    with pytest.raises(type(error)):
        make_label_maps(noisy, out, map_teacher, OPTIONS, num_threads=1)
    assert len(list(out.glob("*.tar"))) == 2
    assert not (out / "manifest.json").exists()
    encoded[:] = [1] * 10
    assert make_label_maps(noisy, out, map_teacher, OPTIONS, num_threads=1) == noisy_maps[1]
    assert len(encoded) == 10 + 3  # the shards that were finished are not made again


def test_another_calls_folder_is_refused_with_what_differs(noisy, map_teacher, noisy_maps):
    folder, _ = noisy_maps
    with pytest.raises(
        UsageError, match=r"of another run \(label_maps\.top differ\)\. Write into a new folder"
    ):
        make_label_maps(noisy, folder, map_teacher, replace(OPTIONS, top=1))


def test_a_shard_whose_bytes_have_changed_is_refused(noisy, map_teacher, tmp_path):
    shutil.copytree(noisy, tmp_path / "train")
    shard = tmp_path / "train" / Manifest.load(noisy).shards[1].name
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # in the zeros at the end, which no reader looks at
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard.name}: expected SHA-256 .*bytes have changed"):
        make_label_maps(tmp_path / "train", tmp_path / "out", map_teacher, OPTIONS, num_threads=1)


def test_maps_can_be_written_to_a_url(noisy, map_teacher, noisy_maps):
    manifest = make_label_maps(noisy, "memory://maps-make", map_teacher, OPTIONS, num_threads=1)
    assert manifest == noisy_maps[1]
    assert Manifest.load("memory://maps-make") == manifest


def test_several_teachers_are_averaged(noisy, map_teacher, tmp_path):
    torch.manual_seed(1)
    other = timm.create_model("test_resnet", num_classes=5)
    half = (0.5, 0.5, 0.5)
    second = Teacher(other, "test_resnet", half, half, None)
    manifest = make_label_maps(
        noisy, tmp_path / "out", [map_teacher, second], replace(OPTIONS, top=5), num_threads=1
    )
    facts = manifest.label_maps.teacher
    assert facts["model"] == "resnet10t + test_resnet"
    assert [each["model"] for each in facts["teachers"]] == ["resnet10t", "test_resnet"]
    options = dict(augment=Augment.evaluation(SIZE), dtype="float32", shuffle=False, last_batch="pad")
    expected = 0
    for each in (map_teacher, second):
        with Loader(noisy, batch_size=9, num_threads=1, mean=each.mean, std=each.std, **options) as loader:
            batch = next(iter(loader))
        with torch.inference_mode():
            expected = expected + DenseTeacher(each.model)(batch.images) / 2
    parts = samples(tmp_path / "out")
    for i, key in enumerate(batch.keys):
        scores, ids = decode_label_map(parts[key]["lmap"])
        found = torch.zeros(5, 3, 3).scatter(
            0, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(scores)
        )
        torch.testing.assert_close(found, expected[i], atol=2e-3, rtol=2e-3)


def test_teachers_of_other_grids_are_refused_before_anything_is_written(noisy, map_teacher, tmp_path):
    finer = timm.create_model("test_vit2", num_classes=5, img_size=SIZE)
    second = Teacher(finer, "test_vit2", NO_SHIFT["mean"], NO_SHIFT["std"], None)
    with pytest.raises(UsageError, match="on one grid of cells, found resnet10t 3 x 3, test_vit2 6 x 6"):
        make_label_maps(noisy, tmp_path / "out", [map_teacher, second], OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["classes.npy", "tree.json"])
def test_a_data_set_without_one_of_its_files_is_refused(noisy, map_teacher, tmp_path, name):
    shutil.copytree(noisy, tmp_path / "train")
    (tmp_path / "train" / name).unlink()
    with pytest.raises(DataError, match=f"{name}: expected a file of the data set, found none"):
        make_label_maps(tmp_path / "train", tmp_path / "out", map_teacher, OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", [False, True])
def test_maps_of_a_data_set_behind_a_url_are_those_of_the_folder(noisy, map_teacher, memory, tmp_path, side):
    options, cache = replace(OPTIONS, side=side), Cache(folder=tmp_path / "cache")
    remote = memory(noisy)
    here = make_label_maps(noisy, tmp_path / "here", map_teacher, options, num_threads=1)
    there = make_label_maps(remote, tmp_path / "there", map_teacher, options, num_threads=1, cache=cache)
    assert here == there
    for path in (tmp_path / "here").iterdir():
        if path.is_file():
            assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()


def test_a_remote_shard_that_is_missing_or_another_is_refused(noisy, map_teacher, memory, tmp_path):
    remote, files = memory(noisy), fsspec.filesystem("memory")
    cache = Cache(folder=tmp_path / "cache")
    record = Manifest.load(noisy).shards[1]
    path = f"{remote.removeprefix('memory:/')}/{record.name}"
    content = bytearray(files.cat(path))
    content[-1] ^= 1
    files.pipe(path, bytes(content))
    with pytest.raises(DataError, match=f"{record.name}: expected SHA-256 {record.sha256[:12]}"):
        make_label_maps(remote, tmp_path / "out", map_teacher, OPTIONS, num_threads=1, cache=cache)
    files.rm(path)
    with pytest.raises(DataError, match=f"{record.name}: expected the shard"):
        make_label_maps(remote, tmp_path / "out", map_teacher, OPTIONS, num_threads=1, cache=cache)
    files.rm(f"{remote.removeprefix('memory:/')}/tree.json")
    with pytest.raises(DataError, match=r"tree\.json: expected a file of the data set, found none"):
        make_label_maps(remote, tmp_path / "new", map_teacher, OPTIONS, num_threads=1, cache=cache)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top": 0}, "from 1, found 96, 0 and 2"),
        ({"scores": "int4"}, "scores: expected one of float16, uint8, found 'int4'"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        replace(OPTIONS, **wrong)


def test_a_teacher_whose_head_cannot_run_densely_is_refused_with_the_reason(noisy, tmp_path):
    model = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    teacher = Teacher(model, "mobilenetv3_small_050", NO_SHIFT["mean"], NO_SHIFT["std"], None)
    with pytest.raises(UsageError, match="there is Conv2d, Hardswish between"):
        make_label_maps(noisy, tmp_path / "out", teacher, OPTIONS)
    assert not (tmp_path / "out").exists()
