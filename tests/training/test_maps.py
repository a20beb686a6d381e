"""A real teacher over a real, tiny data set: the maps are its dense prediction, everything else stays as it was."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec

import cv2
import fsspec
import numpy as np
import pytest
import s3fs
import timm
import torch
from forked import COMMAND

from softshard.loaders import Augment, Cache, Loader
from softshard.shards import (
    DataError,
    ImageRecipe,
    LabelTree,
    Manifest,
    PackOptions,
    UsageError,
    decode_label_map,
    pack,
    read_shard,
    verify,
)
from softshard.shards.cli import main
from softshard.shards.images import pixel_stack
from softshard.shards.labelmap_side import join_label_maps
from softshard.training import maps as maps_module
from softshard.training.checkpoint import load_checkpoint, save_checkpoint
from softshard.training.dense import DenseTeacher
from softshard.training.maps import MapOptions, Teacher, load_teacher, load_teachers, make_label_maps
from softshard.training.maps_teacher import state_sha256
from softshard.training.recipes import single_label
from softshard.training.train import train

SIZE = 96  # three by three cells of the teacher below
OPTIONS = MapOptions(size=SIZE, top=2, scores="float16", batch_size=2)  # close to the dense logits
NO_SHIFT = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Nine noisy pictures of three classes in three shards, with a tree."""
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "oak"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (48 + 8 * i, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "images" / name / f"{i}.png"), pixels)
    tree = LabelTree.from_table(
        ("cat", "dog", "oak"), [("cat", "animal"), ("dog", "animal"), ("oak", "plant")]
    )
    options = PackOptions(image=ImageRecipe(resize="none"), shard_samples=3)
    pack(folder / "images", folder / "shards", options, tree=tree, workers=1)
    return folder / "shards" / "train"


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5).eval()
    return Teacher(model, "resnet10t", NO_SHIFT["mean"], NO_SHIFT["std"], None)


@pytest.fixture(scope="module")
def made(dataset, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "out"
    manifest = make_label_maps(dataset, folder, teacher, OPTIONS, num_threads=1)
    return folder, manifest


@pytest.fixture
def own_ray():
    """A folder for a Ray's sockets, whose names must be short."""
    folder = tempfile.mkdtemp(prefix="ss", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def samples(folder):
    return {sample.key: sample.parts for path in sorted(folder.glob("*.tar")) for sample in read_shard(path)}


def test_a_map_is_the_teachers_best_classes_of_every_cell(dataset, teacher, made):
    folder, _ = made
    parts = samples(folder)
    options = dict(
        augment=Augment.evaluation(SIZE), dtype="float32", shuffle=False, last_batch="pad", **NO_SHIFT
    )
    with Loader(dataset, batch_size=9, num_threads=1, **options) as loader:
        batch = next(iter(loader))
    with torch.inference_mode():
        dense_NCPQ = DenseTeacher(teacher.model)(batch.images)
    for i, key in enumerate(batch.keys):
        scores, ids = decode_label_map(parts[key]["lmap"])
        expected, order = dense_NCPQ[i].sort(dim=0, descending=True)
        assert scores.shape == (2, 3, 3)
        np.testing.assert_allclose(scores, expected[:2], atol=2e-3)  # float16, and another batch size
        assert (ids == order[:2].numpy()).all()


def test_every_other_component_keeps_its_bytes_and_the_result_verifies(dataset, made):
    folder, manifest = made
    before, after = samples(dataset), samples(folder)
    assert list(before) == list(after)
    assert all({**parts, "lmap": after[key]["lmap"]} == after[key] for key, parts in before.items())
    assert verify(folder, decode=True).problems == []
    assert manifest == Manifest.load(folder)
    assert (manifest.label_maps.top, manifest.label_maps.rows, manifest.label_maps.columns) == (2, 3, 3)
    assert manifest.label_maps.teacher["model"] == "resnet10t"
    assert manifest.fingerprint != Manifest.load(dataset).fingerprint


def test_the_loader_pools_the_maps_that_were_made(made):
    folder, manifest = made
    with Loader(folder, batch_size=4, targets="relabel", augment=Augment(size=32), num_threads=1) as loader:
        batch = next(iter(loader))
    assert batch.targets.shape == (4, manifest.num_classes)
    torch.testing.assert_close(batch.targets.sum(dim=1), torch.ones(4))


def test_scores_are_uint8_by_default_and_what_compressed_them_is_recorded(dataset, teacher, made, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    replace(Manifest.load(copy), pixel_stack={"pillow": "1.0", "zstandard": "0.1"}).save(copy)
    options = MapOptions(size=SIZE, top=2, batch_size=2)
    found = make_label_maps(copy, tmp_path / "out", teacher, options, num_threads=1)
    assert found.label_maps.teacher["scores"] == "uint8"
    assert made[1].label_maps.teacher["scores"] == "float16"
    ours, theirs = samples(tmp_path / "out"), samples(made[0])
    for key, parts in ours.items():
        scores, _ = decode_label_map(parts["lmap"])
        before, _ = decode_label_map(theirs[key]["lmap"])
        # A step at most, which is a 63rd of the range at most, and float16's own rounding.
        assert np.abs(scores - before).max() <= np.ptp(before) / 60
    versions = {package: pixel_stack()[package] for package in ("lz4", "zstandard")}
    assert found.pixel_stack == {"pillow": "1.0", **versions}
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert {package: plan[package] for package in versions} == versions


def test_the_same_teacher_gives_the_same_bytes(dataset, teacher, made, tmp_path):
    _, manifest = made
    again = make_label_maps(dataset, tmp_path / "again", teacher, OPTIONS, num_threads=2)
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in manifest.shards]


def test_a_destination_with_files_in_it_is_refused(dataset, teacher, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"expected an empty or new folder, found 'mine.txt'"):
        make_label_maps(dataset, tmp_path, teacher, OPTIONS)


@pytest.mark.parametrize("error", [DataError("damaged"), KeyboardInterrupt()])
def test_an_interrupted_run_continues_with_the_shards_that_are_missing(
    dataset, teacher, made, tmp_path, monkeypatch, error
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
        make_label_maps(dataset, out, teacher, OPTIONS, num_threads=1)
    assert len(list(out.glob("*.tar"))) == 2
    assert not (out / "manifest.json").exists()
    encoded[:] = [1] * 10
    assert make_label_maps(dataset, out, teacher, OPTIONS, num_threads=1) == made[1]
    assert len(encoded) == 10 + 3  # the shards that were finished are not made again


def test_another_calls_folder_is_refused_with_what_differs(dataset, teacher, made):
    folder, _ = made
    with pytest.raises(
        UsageError, match=r"of another run \(label_maps\.top differ\)\. Write into a new folder"
    ):
        make_label_maps(dataset, folder, teacher, replace(OPTIONS, top=1))


def test_a_shard_whose_bytes_have_changed_is_refused(dataset, teacher, tmp_path):
    shutil.copytree(dataset, tmp_path / "train")
    shard = tmp_path / "train" / Manifest.load(dataset).shards[1].name
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # in the zeros at the end, which no reader looks at
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard.name}: expected SHA-256 .*bytes have changed"):
        make_label_maps(tmp_path / "train", tmp_path / "out", teacher, OPTIONS, num_threads=1)


def test_maps_can_be_written_to_a_url(dataset, teacher, made):
    manifest = make_label_maps(dataset, "memory://maps-make", teacher, OPTIONS, num_threads=1)
    assert manifest == made[1]
    assert Manifest.load("memory://maps-make") == manifest


def test_several_teachers_are_averaged(dataset, teacher, tmp_path):
    torch.manual_seed(1)
    other = timm.create_model("test_resnet", num_classes=5)
    half = (0.5, 0.5, 0.5)
    second = Teacher(other, "test_resnet", half, half, None)
    manifest = make_label_maps(
        dataset, tmp_path / "out", [teacher, second], replace(OPTIONS, top=5), num_threads=1
    )
    facts = manifest.label_maps.teacher
    assert facts["model"] == "resnet10t + test_resnet"
    assert [each["model"] for each in facts["teachers"]] == ["resnet10t", "test_resnet"]
    options = dict(augment=Augment.evaluation(SIZE), dtype="float32", shuffle=False, last_batch="pad")
    expected = 0
    for each in (teacher, second):
        with Loader(dataset, batch_size=9, num_threads=1, mean=each.mean, std=each.std, **options) as loader:
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


def test_teachers_of_other_grids_are_refused_before_anything_is_written(dataset, teacher, tmp_path):
    finer = timm.create_model("test_vit2", num_classes=5, img_size=SIZE)
    second = Teacher(finer, "test_vit2", NO_SHIFT["mean"], NO_SHIFT["std"], None)
    with pytest.raises(UsageError, match="on one grid of cells, found resnet10t 3 x 3, test_vit2 6 x 6"):
        make_label_maps(dataset, tmp_path / "out", [teacher, second], OPTIONS)
    assert not (tmp_path / "out").exists()


def command_options(checkpoint):
    options = ["--teacher", "test_resnet", "--checkpoint", checkpoint, "--size", 64, "--top", 3]
    return [*options, "--device", "cpu", "--threads", 1, "--batch-size", 2]


@pytest.fixture(scope="module")
def made_by_one(dataset, checkpoint, forks, tmp_path_factory):
    """Name to content of what the command writes in one process."""
    out = tmp_path_factory.mktemp("one") / "out"
    done = forks.run("maps", "make", dataset, out, *command_options(checkpoint))
    assert done.returncode == 0, done.stderr
    found = files_of(out)
    assert "manifest.json" in found
    return found


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_two_processes_make_the_same_bytes_as_one(dataset, checkpoint, made_by_one, tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    words = ["command.py", "maps", "make", dataset, "two", *command_options(checkpoint)]
    done = subprocess.run(
        [*map(str, [*launcher, *words])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 label maps, top 3 of 5 classes") == 1
    assert files_of(tmp_path / "two") == made_by_one


@pytest.mark.usefixtures("one_ray_at_a_time")
@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install '.[ray]'")
def test_ray_makes_the_same_bytes_in_two_processes_and_brings_their_errors(
    dataset, checkpoint, made_by_one, forks, tmp_path, own_ray
):
    def on_ray(source, destination):
        words = ["maps", "make", source, destination, *command_options(checkpoint)]
        here = f"import os; os.chdir({str(tmp_path)!r}); {COMMAND}"
        return forks.run(*words, "--engine", "ray", "--workers", 2, code=here, RAY_TMPDIR=own_ray)

    done = on_ray(dataset, "two")  # relative to the folder of the command
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 label maps, top 3 of 5 classes") == 1
    assert files_of(tmp_path / "two") == made_by_one

    shutil.copytree(dataset, tmp_path / "train")
    name = Manifest.load(dataset).shards[1].name  # the second rank's
    (tmp_path / "train" / name).unlink()
    failed = on_ray("train", "bad")
    assert failed.returncode == 1
    assert f"softshard: {name}: expected the shard and its .idx" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_workers_without_ray_are_a_wrong_call(dataset, tmp_path, capsys):
    assert (
        main(["maps", "make", str(dataset), str(tmp_path), "--teacher", "resnet10t", "--workers", "2"]) == 2
    )
    assert "--workers: expected a number from 1 with --engine ray, found 2" in capsys.readouterr().err


def test_an_error_of_the_first_process_ends_all(dataset, checkpoint, forks, tmp_path):
    (tmp_path / "mine.txt").touch()
    options = ["--teacher", "test_resnet", "--checkpoint", checkpoint, "--size", 64, "--device", "cpu"]
    done = forks.run("maps", "make", dataset, tmp_path, *options, processes=2)
    assert done.returncode != 0
    assert done.stderr.count("expected an empty or new folder, found 'mine.txt'") == 2


def test_side_shards_joined_give_the_same_data_set(dataset, teacher, made, tmp_path, capsys):
    side, joined = tmp_path / "side", tmp_path / "joined"
    make_label_maps(dataset, side, teacher, replace(OPTIONS, side=True), num_threads=1)
    assert not (side / "manifest.json").exists()
    assert all(set(parts) == {"lmap"} for parts in samples(side).values())
    assert main(["maps", "join", str(dataset), str(side), str(joined)]) == 0
    assert Manifest.load(joined) == made[1]
    assert samples(joined) == samples(made[0])
    assert verify(joined, decode=True).problems == []
    assert join_label_maps(dataset, side, joined) == made[1]  # again: all is there
    capsys.readouterr()
    assert main(["maps", "join", str(dataset), str(side), str(joined), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["destination"], told["fingerprint"]) == (str(joined), made[1].fingerprint)
    assert (told["samples"], told["shards"]) == (made[1].num_samples, len(made[1].shards))


def test_a_data_set_and_side_shards_behind_urls_are_joined(dataset, teacher, made, memory, tmp_path):
    side = tmp_path / "side"
    make_label_maps(dataset, side, teacher, replace(OPTIONS, side=True), num_threads=1)
    there, side_there = memory(dataset), memory(side)
    assert join_label_maps(there, side_there, tmp_path / "joined") == made[1]
    assert samples(tmp_path / "joined") == samples(made[0])
    fsspec.filesystem("memory").rm(f"/copies/side/{made[1].shards[0].name}")
    with pytest.raises(DataError, match=r"side/.*: expected a shard of the data set, found none"):
        join_label_maps(there, side_there, tmp_path / "other")


@pytest.mark.parametrize("damaged", ["shards", "dataset"])
def test_a_damaged_description_of_side_shards_is_refused(dataset, teacher, tmp_path, damaged):
    make_label_maps(dataset, tmp_path / "side", teacher, replace(OPTIONS, side=True), num_threads=1)
    file = tmp_path / "side" / "label_maps.json"
    content = json.loads(file.read_text())
    content[damaged] = content[damaged][:-1] if damaged == "shards" else 7
    file.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"side.*: expected (side shards named like|a description of side shards)"
    ):
        join_label_maps(dataset, tmp_path / "side", tmp_path / "out")


def test_training_joins_side_shards_as_it_reads(dataset, teacher, made, tmp_path):
    side = tmp_path / "side"
    make_label_maps(dataset, side, teacher, replace(OPTIONS, side=True), num_threads=1)
    small = ["--model", "test_resnet", "--epochs", "1", "--global-batch", "3", "--image-size", "32"]
    assert main(["train", "relabel", str(made[0]), "--out", str(tmp_path / "whole"), *small]) == 0
    call = ["train", "relabel", str(dataset), "--side", str(side), "--out", str(tmp_path / "joined"), *small]
    assert main(call) == 0
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "joined")]
    assert weights[0] == weights[1]
    assert main([*call[:3], *call[5:], "--resume"]) == 2  # no label maps in the data set itself


def test_side_shards_of_another_data_set_are_not_joined(dataset, teacher, made, tmp_path, capsys):
    make_label_maps(dataset, tmp_path / "side", teacher, replace(OPTIONS, side=True), num_threads=1)
    assert main(["maps", "join", str(made[0]), str(tmp_path / "side"), str(tmp_path / "out")]) == 1
    assert "expected label maps of the data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found no label_maps.json, which is written last"),
        ("[]", "expected a description of side shards"),
        ('{"format": "softshard-label-maps", "version": 2}', "expected version 1, found 2"),
        ('{"format": "tar", "version": 1}', "found: ValueError"),
    ],
)
def test_side_shards_without_their_description_are_refused(dataset, tmp_path, content, message):
    if content is not None:
        (tmp_path / "label_maps.json").write_text(content)
    with pytest.raises(DataError, match=message):
        join_label_maps(dataset, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["classes.npy", "tree.json"])
def test_a_data_set_without_one_of_its_files_is_refused(dataset, teacher, tmp_path, name):
    shutil.copytree(dataset, tmp_path / "train")
    (tmp_path / "train" / name).unlink()
    with pytest.raises(DataError, match=f"{name}: expected a file of the data set, found none"):
        make_label_maps(tmp_path / "train", tmp_path / "out", teacher, OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", [False, True])
def test_maps_of_a_data_set_behind_a_url_are_those_of_the_folder(dataset, teacher, memory, tmp_path, side):
    options, cache = replace(OPTIONS, side=side), Cache(folder=tmp_path / "cache")
    remote = memory(dataset)
    here = make_label_maps(dataset, tmp_path / "here", teacher, options, num_threads=1)
    there = make_label_maps(remote, tmp_path / "there", teacher, options, num_threads=1, cache=cache)
    assert here == there
    for path in (tmp_path / "here").iterdir():
        if path.is_file():
            assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()


def test_from_bucket_to_bucket(dataset, checkpoint, s3_bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOFTSHARD_CACHE", str(tmp_path / "cache"))
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    bucket.put(str(dataset), f"{s3_bucket}/train", recursive=True)
    command = ["--teacher", "test_resnet", "--checkpoint", str(checkpoint), "--size", "64", "--device", "cpu"]
    assert main(["maps", "make", f"{s3_bucket}/train", f"{s3_bucket}/maps", *command]) == 0
    assert main(["maps", "make", str(dataset), str(tmp_path / "here"), *command]) == 0
    assert Manifest.load(f"{s3_bucket}/maps") == Manifest.load(tmp_path / "here")
    assert not verify(f"{s3_bucket}/maps", decode=True).problems
    capsys.readouterr()
    found = []
    for folder in (f"{s3_bucket}/maps", str(tmp_path / "here")):
        assert main(["maps", "check", folder, *command, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


def test_a_remote_shard_that_is_missing_or_another_is_refused(dataset, teacher, memory, tmp_path):
    remote, files = memory(dataset), fsspec.filesystem("memory")
    cache = Cache(folder=tmp_path / "cache", deadline_s=5)
    record = Manifest.load(dataset).shards[1]
    path = f"{remote.removeprefix('memory:/')}/{record.name}"
    content = bytearray(files.cat(path))
    content[-1] ^= 1
    files.pipe(path, bytes(content))
    with pytest.raises(DataError, match=f"{record.name}: expected SHA-256 {record.sha256[:12]}"):
        make_label_maps(remote, tmp_path / "out", teacher, OPTIONS, num_threads=1, cache=cache)
    files.rm(path)
    with pytest.raises(DataError, match=f"{record.name}: expected the shard"):
        make_label_maps(remote, tmp_path / "out", teacher, OPTIONS, num_threads=1, cache=cache)
    files.rm(f"{remote.removeprefix('memory:/')}/tree.json")
    with pytest.raises(DataError, match=r"tree\.json: expected a file of the data set, found none"):
        make_label_maps(remote, tmp_path / "new", teacher, OPTIONS, num_threads=1, cache=cache)


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


def test_a_broken_environment_of_torchrun_is_named_before_a_teacher_is_fetched(
    dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "two")
    words = ["maps", "make", str(dataset), str(tmp_path / "out"), "--teacher", "no_such_model"]
    assert main([*words, "--size", "64"]) == 2
    assert "WORLD_SIZE: expected a number as torchrun sets it" in capsys.readouterr().err


def test_a_teacher_whose_head_cannot_run_densely_is_refused_with_the_reason(dataset, tmp_path):
    model = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    teacher = Teacher(model, "mobilenetv3_small_050", NO_SHIFT["mean"], NO_SHIFT["std"], None)
    with pytest.raises(UsageError, match="there is Conv2d, Hardswish between"):
        make_label_maps(dataset, tmp_path / "out", teacher, OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    recipe = replace(single_label(), epochs=1, global_batch=3, image_size=32)
    return train(recipe, str(dataset), model="test_resnet", out=out, log=lambda line: None).checkpoint


def test_a_trained_checkpoint_teaches_its_own_class_list_from_the_command_line(
    dataset, checkpoint, tmp_path, capsys
):
    out = tmp_path / "out"
    call = [
        "maps",
        "make",
        str(dataset),
        str(out),
        "--teacher",
        "test_resnet",
        "--checkpoint",
        str(checkpoint),
    ]
    assert main([*call, "--size", "64", "--top", "3", "--device", "cpu"]) == 0
    assert "9 label maps, top 3 of 5 classes" in capsys.readouterr().out
    assert len(Manifest.load(out).label_maps.teacher["weights_sha256"]) == 64


def test_a_checkpoint_of_another_architecture_is_refused(dataset, checkpoint):
    with pytest.raises(DataError, match="expected a checkpoint of resnet10t, found one of test_resnet"):
        load_teacher("resnet10t", Manifest.load(dataset), size=32, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def trained_vit(dataset, tmp_path_factory):
    recipe = replace(single_label(), epochs=1, global_batch=3, image_size=32)
    out = tmp_path_factory.mktemp("vit")
    return train(recipe, str(dataset), model="test_vit", out=out, log=lambda line: None).checkpoint


def test_position_embeddings_are_resampled_for_another_size(dataset, trained_vit):
    manifest = Manifest.load(dataset)
    own_size = load_teacher("test_vit", manifest, checkpoint=trained_vit)
    assert own_size.model.patch_embed.img_size == (32, 32)
    larger = load_teacher("test_vit", manifest, size=64, checkpoint=trained_vit)
    assert larger.model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert own_size.weights_sha256 == larger.weights_sha256


def test_averaged_weights_are_resampled_for_another_size_too(dataset, trained_vit, tmp_path):
    manifest, path = Manifest.load(dataset), tmp_path / "checkpoint.pt"
    saved = load_checkpoint(trained_vit)
    nothing_learnt = {name: torch.zeros_like(weight) for name, weight in saved.model.items()}
    save_checkpoint(path, replace(saved, model=nothing_learnt, model_ema=saved.model))
    averaged, plain = (
        load_teacher("test_vit", manifest, size=64, checkpoint=each) for each in (path, trained_vit)
    )
    assert state_sha256(averaged.model) == state_sha256(plain.model)


def test_an_architecture_that_timm_cannot_resample_is_refused_at_another_size(
    dataset, trained_vit, monkeypatch
):
    monkeypatch.setattr(timm.models.vision_transformer, "checkpoint_filter_fn", lambda state, model: state)
    with pytest.raises(DataError, match=r"for images of 64 pixels.*built for one size\. Run with --size 32"):
        load_teacher("test_vit", Manifest.load(dataset), size=64, checkpoint=trained_vit)


def test_each_teacher_wants_a_checkpoint_or_none_does(dataset):
    with pytest.raises(UsageError, match=r"expected a --checkpoint for each of 2 teachers.*found 1"):
        load_teachers(["resnet10t", "test_resnet"], ["a.pt"], Manifest.load(dataset), size=32)
