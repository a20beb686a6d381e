"""A teacher's outputs and a data set's classes, by name: timm's own weights, checkpoints, lists of a user's."""

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
from softshard.shards.classes import class_list_sha256
from softshard.shards.cli import main
from softshard.training import maps_teacher
from softshard.training.checkpoint import state_sha256
from softshard.training.dense import DenseTeacher
from softshard.training.maps import MapOptions, load_teacher, load_teachers, make_label_maps
from softshard.training.maps_check import check_orientation
from softshard.training.recipes import single_label
from softshard.training.train import train

SYNSETS = tuple(ImageNetInfo("imagenet-1k").label_names())
FOX, WOLF, SWAN = "n02119022", "n02114367", "n01860187"  # red fox, timber wolf, black swan


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """Six pictures of three of ImageNet's classes, in another order than timm's, with inner nodes from WordNet."""
    folder = tmp_path_factory.mktemp("hundred")
    rng = np.random.default_rng(0)
    for name in (FOX, WOLF, SWAN):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "images" / name / f"{i}.png"), pixels)
    tree = LabelTree.from_wordnet((FOX, WOLF, SWAN), inner="branching")
    assert len(tree.classes) > 3
    pack(
        folder / "images",
        folder / "shards",
        PackOptions(image=ImageRecipe(resize="none")),
        tree=tree,
        workers=1,
    )
    return folder / "shards" / "train"


@pytest.fixture
def own_weights(monkeypatch):
    """timm's own weights of test_resnet, without downloading them: as many outputs as asked for."""

    def prepare(num_outputs=1000):
        config = replace(timm.get_pretrained_cfg("test_resnet"), num_classes=num_outputs)
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)

        def create(name, num_classes, size, **_):
            torch.manual_seed(0)
            return timm.create_model(name, num_classes=num_classes)

        monkeypatch.setattr(maps_teacher, "create_model", create)

    prepare()
    return prepare


def named(dataset, class_names):
    return replace(
        Manifest.load(dataset), class_names=class_names, classes_sha256=class_list_sha256(class_names)
    )


def test_timms_own_weights_teach_a_data_set_of_their_classes_in_their_order(hundred, own_weights):
    with warnings.catch_warnings(action="error"):
        own = load_teacher("test_resnet", named(hundred, SYNSETS), size=32)
    assert own.outputs is None
    assert own.weights_sha256 == state_sha256(own.model)
    with torch.no_grad():
        next(own.model.parameters()).view(-1)[0] += 1
    assert own.weights_sha256 != state_sha256(own.model)


def test_classes_in_another_order_are_matched_by_name(hundred, own_weights):
    turned = SYNSETS[::-1]
    teacher = load_teacher("test_resnet", named(hundred, turned), size=32)
    logits = torch.arange(2000.0).reshape(2, 1000)
    assert torch.equal(teacher.to_classes(logits), logits.flip(1))
    assert teacher.outputs.facts()["used"] == 1000


def test_a_teacher_of_a_thousand_classes_labels_a_data_set_of_some_of_them(
    hundred, own_weights, tmp_path, capsys
):
    out = tmp_path / "out"
    call = ["maps", "make", str(hundred), str(out), "--teacher", "test_resnet", "--device", "cpu"]
    assert main([*call, "--size", "96", "--top", "5", "--scores", "float16"]) == 0
    manifest = Manifest.load(hundred)
    printed = capsys.readouterr().out
    assert (
        "teacher test_resnet: 3 of its 1,000 outputs are classes of the data set; the other 997 are left out; "
        f"{manifest.num_classes - 3} classes of the data set, all without images, have none" in printed
    )
    assert f"6 label maps, top 3 of {manifest.num_classes} classes" in printed  # there are but three to keep
    made = Manifest.load(out)
    (facts,) = made.label_maps.teacher["teachers"]
    assert facts["outputs"] == {"number": 1000, "used": 3, "classes_sha256": class_list_sha256(SYNSETS)}
    assert verify(out).problems == []
    # The ids count in the data set's list, the scores are those of the teacher's own outputs.
    augment = Augment.evaluation(96)
    options = dict(augment=augment, dtype="float32", shuffle=False, last_batch="pad")
    with Loader(hundred, batch_size=6, num_threads=1, **options) as loader:
        batch = next(iter(loader))
    teacher = load_teacher("test_resnet", manifest, size=96)
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    images = teacher.normalise((batch.images * std + mean) * 255)
    with torch.inference_mode():
        dense_NCPQ = DenseTeacher(teacher.model)(images).numpy()
    maps = {s.key: s.parts["lmap"] for path in sorted(out.glob("*.tar")) for s in read_shard(path)}
    for i, key in enumerate(batch.keys):
        scores, ids = decode_label_map(maps[key])
        assert set(np.unique(ids)) == {manifest.class_names.index(name) for name in (FOX, WOLF, SWAN)}
        outputs = np.vectorize(lambda c: SYNSETS.index(manifest.class_names[c]))(ids)
        expected = np.take_along_axis(dense_NCPQ[i], outputs, axis=0)
        np.testing.assert_allclose(scores, expected, atol=5e-3)
        assert (np.diff(scores, axis=0) <= 0).all()
    found = check_orientation(out, made, teacher, size=32, num_images=6, num_threads=1)
    assert np.isfinite(found["as_stored"]["cross_entropy"])


def test_a_class_with_images_that_the_teacher_does_not_know_is_refused(hundred, own_weights, tmp_path):
    labels = [name if name != FOX else "something else" for name in SYNSETS]
    teacher = load_teacher("test_resnet", Manifest.load(hundred), size=96, labels=labels)
    with pytest.raises(
        DataError, match=rf"found none for 1 of 3: '{FOX}' \(2 images\)\. Leave .*reshard --classes"
    ):
        make_label_maps(hundred, tmp_path / "out", teacher, MapOptions(size=96))
    assert not (tmp_path / "out").exists()


def test_a_data_set_in_other_words_wants_the_outputs_in_its_words(hundred, own_weights, tmp_path):
    words = named(hundred, ("red fox", "timber wolf", "black swan"))
    with pytest.raises(
        DataError, match=r"timm's imagenet-1k .*not named by wnid; .*--labels FILE.*--checkpoint"
    ):
        load_teacher("test_resnet", words, size=32)
    info = ImageNetInfo("imagenet-1k")
    lines = [info.index_to_description(i).partition(",")[0] for i in range(1000)]
    unique = [line if lines.count(line) == 1 else f"{line} {i}" for i, line in enumerate(lines)]
    (tmp_path / "words.txt").write_text("\n".join(unique) + "\n")
    teacher = load_teacher("test_resnet", words, size=32, labels=tmp_path / "words.txt")
    assert teacher.outputs.of_class == tuple(SYNSETS.index(name) for name in (FOX, WOLF, SWAN))
    with pytest.raises(
        UsageError, match=r"expected --labels with a name for each of its 1000 outputs, found 3 names"
    ):
        load_teacher("test_resnet", words, size=32, labels=["red fox", "timber wolf", "black swan"])
    with pytest.raises(DataError, match=r"found none: .*it is another class list"):
        load_teacher("test_resnet", words, size=32, labels=[f"noun {i}" for i in range(1000)])


def test_a_name_that_timm_does_not_know_is_refused_before_anything_is_said_of_its_outputs(hundred):
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(UsageError, match="expected a name that timm"),
    ):
        load_teacher("no_such_model", Manifest.load(hundred), size=32)


def test_outputs_that_timm_has_no_class_list_for_want_one_or_the_same_number(hundred, own_weights):
    manifest = Manifest.load(hundred)
    own_weights(manifest.num_classes)
    with pytest.warns(
        UserWarning, match=r"no class list for its \d+ outputs.*could not be checked; --labels says"
    ):
        load_teacher("test_resnet", manifest, size=32)
    own_weights(77)
    with pytest.raises(UsageError, match=r"found 77 outputs that timm has no class list for\. .*--labels"):
        load_teacher("test_resnet", manifest, size=32)
    labels = [*manifest.class_names, *(f"other {i}" for i in range(77 - manifest.num_classes))]
    with warnings.catch_warnings(action="error"):
        teacher = load_teacher("test_resnet", manifest, size=32, labels=labels)
    assert teacher.outputs.of_class == tuple(range(manifest.num_classes))


@pytest.fixture(scope="module")
def checkpoint(hundred, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    recipe = replace(single_label(), epochs=1, global_batch=3, image_size=32)
    return train(recipe, str(hundred), model="test_resnet", out=out, log=lambda line: None).checkpoint


def test_a_checkpoint_of_another_class_list_is_refused_with_both_unless_its_list_is_named(
    hundred, checkpoint, tmp_path
):
    (tmp_path / "images" / FOX).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / FOX / "0.png"), np.zeros((96, 96, 3), np.uint8))
    pack(tmp_path / "images", tmp_path / "shards", PackOptions(), workers=1)
    dataset = tmp_path / "shards" / "train"
    other, own = Manifest.load(dataset), Manifest.load(hundred)
    with pytest.raises(
        DataError, match=r"do not belong together.*name the teacher's class list: --labels"
    ) as caught:
        load_teacher("test_resnet", other, size=96, checkpoint=checkpoint)
    assert own.classes_sha256 in str(caught.value)
    assert other.classes_sha256 in str(caught.value)
    with pytest.raises(DataError, match="expected --labels to be the class list") as caught:
        load_teacher("test_resnet", other, size=96, checkpoint=checkpoint, labels=dataset)
    assert own.classes_sha256 in str(caught.value)
    assert other.classes_sha256 in str(caught.value)
    teacher = load_teacher("test_resnet", other, size=96, checkpoint=checkpoint, labels=hundred)
    assert teacher.outputs.of_class == (own.class_names.index(FOX),)
    made = make_label_maps(dataset, tmp_path / "out", teacher, MapOptions(size=96), num_threads=1)
    assert (made.label_maps.top, made.label_maps.num_classes) == (1, 1)


def test_each_teacher_wants_its_labels_or_none_does(hundred):
    with pytest.raises(UsageError, match=r"expected --labels for each of 2 teachers.*found 1"):
        load_teachers(["test_resnet"] * 2, [], Manifest.load(hundred), size=32, labels=["imagenet-1k"])
