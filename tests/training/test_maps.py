"""A real teacher over a real, tiny data set: the maps are its dense prediction, everything else stays as it was."""

import shutil
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo

from softshard.loaders import Augment, Loader
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
from softshard.training import maps as maps_module
from softshard.training.dense import dense_logits
from softshard.training.maps import Teacher, load_teacher, make_label_maps
from softshard.training.recipes import single_label
from softshard.training.train import train

SIZE = 96  # three by three cells of the teacher below
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
    manifest = make_label_maps(dataset, folder, teacher, size=SIZE, top=2, batch_size=4, num_threads=1)
    return folder, manifest


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
        dense_NCPQ = dense_logits(teacher.model, batch.images)
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


def test_the_same_teacher_gives_the_same_bytes(dataset, teacher, made, tmp_path):
    _, manifest = made
    again = make_label_maps(
        dataset, tmp_path / "again", teacher, size=SIZE, top=2, batch_size=4, num_threads=2
    )
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in manifest.shards]


def test_a_destination_with_files_in_it_is_refused(dataset, teacher, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match="expected a new or empty folder, found files in it"):
        make_label_maps(dataset, tmp_path, teacher, size=SIZE)


def test_the_refusal_says_that_a_killed_run_may_have_left_the_files(dataset, teacher, tmp_path):
    (tmp_path / "train-000000.tar").write_bytes(b"half")
    with pytest.raises(UsageError, match="left over from a run that was killed, and can be deleted"):
        make_label_maps(dataset, tmp_path, teacher, size=SIZE)


@pytest.mark.parametrize("error", [DataError("damaged"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(
    dataset, teacher, tmp_path, monkeypatch, error
):
    plain, written = maps_module.encode_label_map, []

    def encode(*args, **options):
        written.append(1)
        if len(written) == 8:  # in the third of three shards
            raise error
        return plain(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(maps_module, "encode_label_map", encode)
        with pytest.raises(type(error)):
            make_label_maps(dataset, tmp_path / "out", teacher, size=SIZE, batch_size=3, num_threads=1)
    assert list((tmp_path / "out").iterdir()) == []
    make_label_maps(dataset, tmp_path / "out", teacher, size=SIZE, num_threads=1)


@pytest.mark.parametrize("name", ["classes.npy", "tree.json"])
def test_a_data_set_without_one_of_its_files_is_refused(dataset, teacher, tmp_path, name):
    shutil.copytree(dataset, tmp_path / "train")
    (tmp_path / "train" / name).unlink()
    with pytest.raises(DataError, match=f"{name}: expected a file of the data set, found none"):
        make_label_maps(tmp_path / "train", tmp_path / "out", teacher, size=SIZE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("url", ["s3://bucket/train", "memory://train"])
def test_a_url_is_refused(dataset, teacher, tmp_path, url, capsys):
    assert main(["maps", "make", url, str(tmp_path / "out"), "--teacher", "resnet50"]) == 2
    assert f"{url}: expected a local folder, found a URL" in capsys.readouterr().err
    with pytest.raises(UsageError, match="expected a local folder, found a URL"):
        make_label_maps(dataset, url, teacher, size=SIZE)


def test_a_teacher_whose_head_cannot_run_densely_is_refused_with_the_reason(dataset, tmp_path):
    model = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    teacher = Teacher(model, "mobilenetv3_small_050", NO_SHIFT["mean"], NO_SHIFT["std"], None)
    with pytest.raises(UsageError, match="expected a head of global average pooling and one linear layer"):
        make_label_maps(dataset, tmp_path / "out", teacher, size=SIZE)


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


def test_a_checkpoint_of_another_class_list_is_refused_with_both_fingerprints(dataset, checkpoint, tmp_path):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / "cat" / "0.png"), np.zeros((32, 32, 3), np.uint8))
    pack(tmp_path / "images", tmp_path / "shards", PackOptions(), workers=1)
    other, own = Manifest.load(tmp_path / "shards" / "train"), Manifest.load(dataset)
    with pytest.raises(DataError, match="do not belong together") as caught:
        load_teacher("test_resnet", other, size=32, checkpoint=checkpoint)
    assert own.classes_sha256 in str(caught.value)
    assert other.classes_sha256 in str(caught.value)


def test_a_checkpoint_of_another_architecture_is_refused(dataset, checkpoint):
    with pytest.raises(DataError, match="expected a checkpoint of resnet10t, found one of test_resnet"):
        load_teacher("resnet10t", Manifest.load(dataset), size=32, checkpoint=checkpoint)


def test_timms_own_weights_are_refused_for_another_number_of_classes(dataset):
    with pytest.raises(UsageError, match="expected weights for the data set's 5 classes, found 1000"):
        load_teacher("resnet50", Manifest.load(dataset), size=32)


SYNSETS = tuple(ImageNetInfo("imagenet-1k").label_names())


def own_weights(dataset, monkeypatch, class_names, num_outputs=1000):
    """load_teacher with timm's own weights, without downloading them."""
    config = replace(timm.get_pretrained_cfg("test_resnet"), num_classes=num_outputs)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
    monkeypatch.setattr(
        maps_module,
        "create_model",
        lambda name, num_classes, size, **_: timm.create_model(name, num_classes=num_classes),
    )
    return load_teacher("test_resnet", replace(Manifest.load(dataset), class_names=class_names), size=32)


def test_timms_own_weights_teach_a_data_set_of_their_classes_in_their_order(dataset, monkeypatch):
    with warnings.catch_warnings(action="error"):
        assert own_weights(dataset, monkeypatch, SYNSETS).weights_sha256 is None


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        (
            (*SYNSETS[:2], SYNSETS[3], SYNSETS[2], *SYNSETS[4:]),
            f"class 2: expected '{SYNSETS[2]}', found '{SYNSETS[3]}' .*another order",
        ),
        (
            tuple(f"noun {i}" for i in range(1000)),
            "class 0: expected 'n01440764', found 'noun 0' .*named by wnid.*--checkpoint",
        ),
    ],
)
def test_timms_own_weights_are_refused_for_other_classes_of_the_same_number(
    dataset, monkeypatch, class_names, message
):
    with pytest.raises(DataError, match=message):
        own_weights(dataset, monkeypatch, class_names)


def test_outputs_that_timm_has_no_class_list_for_are_used_with_a_warning(dataset, monkeypatch):
    names = Manifest.load(dataset).class_names
    with pytest.warns(UserWarning, match="no class list for its 5 outputs.*could not be checked"):
        own_weights(dataset, monkeypatch, names, num_outputs=5)


def test_a_checkpoint_of_an_architecture_for_one_size_is_refused_at_another(dataset, tmp_path):
    recipe = replace(single_label(), epochs=1, global_batch=3, image_size=32)
    trained = train(recipe, str(dataset), model="test_vit", out=tmp_path, log=lambda line: None).checkpoint
    with pytest.raises(DataError, match=r"for images of 64 pixels.*built for one size\. Run with --size 32"):
        load_teacher("test_vit", Manifest.load(dataset), size=64, checkpoint=trained)
