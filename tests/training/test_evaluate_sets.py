"""Evaluation beside a checkpoint's own classes: several right classes, ReaL, models of timm's."""

import csv
import dataclasses
import json
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch.nn import functional as F

from softshard.loaders import Cache, Loader
from softshard.loaders.crops import Augment
from softshard.loaders.decode import MEAN, STD
from softshard.shards import ImageRecipe, PackOptions, pack
from softshard.shards.classes import load_class_list
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.shards.manifest import Manifest
from softshard.training import live_distillation, semantic_kd
from softshard.training.average_precision import average_precision
from softshard.training.down_the_tree import DownTheTree
from softshard.training.evaluate import evaluate_model
from softshard.training.evaluate_timm import evaluate_timm
from softshard.training.label_sets import AnyOfAccuracy, AnyOfPrecision, LabelSets, real_labels, sample_names
from softshard.training.label_space import LabelSpace
from softshard.training.models import create_model
from softshard.training.preparation import Preparation
from softshard.training.teacher_timm import TimmTeacher
from softshard.training.train import train


def picture(path, rng, height=40, width=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The first eight validation images of ImageNet, by name: class folders named by wnid, 40 pixels."""
    folder = tmp_path_factory.mktemp("imagenet")
    rng, wnids = np.random.default_rng(0), load_class_list("imagenet-1k")
    for number in range(1, 9):
        wnid = wnids[[65, 970, 230, 809, 516, 57, 334, 415][number - 1]]
        picture(folder / "val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG", rng)
    options = PackOptions(image=ImageRecipe(size=32), shard_samples=3)
    pack(folder / "val", folder / "shards", options, class_names=wnids, workers=1)
    return folder / "shards" / "train"


def loader_of(folder, **options):
    whole = dict(augment=Augment.evaluation(size=32), shuffle=False, last_batch="pad", batch_size=5)
    return Loader(folder, **(whole | options))


# ReaL


def test_real_has_an_entry_for_every_validation_image():
    labels = real_labels()
    assert len(labels) == 50_000
    assert sum(map(bool, labels)) == 46_837
    assert {index for row in labels for index in row} <= set(range(1000))


@pytest.mark.shared
def test_every_published_accuracy_is_a_whole_number_of_reals_images(shared_data):
    counted = sum(map(bool, real_labels()))
    with (shared_data / "timm_results" / "results-imagenet-real.csv").open(newline="") as file:
        shares = np.array([float(row["top1"]) / 100 for row in csv.DictReader(file)])
    assert len(shares) > 500

    def largest_rest(num_images):
        return np.abs(shares * num_images - np.rint(shares * num_images)).max()

    # Rounded to three decimals of a percentage, in which one image is two units: a quarter of an image, and a little.
    assert largest_rest(counted) < 0.26
    assert min(largest_rest(counted - 1), largest_rest(counted + 1)) > 0.4


def test_real_labels_are_found_by_the_number_in_the_name(imagenet):
    with loader_of(imagenet) as loader:
        sets = LabelSets.of_loader("real", loader)
        names = dict(sample_names(loader))
    for key, path in names.items():
        assert f"ILSVRC2012_val_{int(path[-13:-5]):08}.JPEG" in path
        assert sets.classes[key] == tuple(real_labels()[int(path[-13:-5]) - 1])
    assert sorted(map(len, sets.classes.values()))[0] == 0  # the first image has no right class


def test_real_follows_the_classes_that_a_data_set_is_read_with(imagenet):
    wnids = load_class_list("imagenet-1k")
    chosen = [wnids[795], wnids[970], wnids[230]]
    with loader_of(imagenet, labels=chosen) as loader:
        sets = LabelSets.of_loader("real", loader)
        keys = dict(sample_names(loader))
    of_second = next(key for key, path in keys.items() if path.endswith("00000002.JPEG"))
    assert sets.classes[of_second] == (1, 0)  # 970 and 795, in that class list
    of_third = next(key for key, path in keys.items() if path.endswith("00000003.JPEG"))
    assert sets.classes[of_third] == (2,)  # 230; 231 is not in the list


def test_real_wants_imagenets_names_and_classes(imagenet, shards, tmp_path):
    with (
        loader_of(shards / "val") as loader,
        pytest.raises(DataError, match="expected classes of imagenet-1k"),
    ):
        LabelSets.of_loader("real", loader)
    rng, wnid = np.random.default_rng(0), load_class_list("imagenet-1k")[0]
    picture(tmp_path / "images" / wnid / "renamed.jpg", rng)
    pack(tmp_path / "images", tmp_path / "shards", PackOptions(shard_samples=9), workers=1)
    with (
        loader_of(tmp_path / "shards" / "train") as loader,
        pytest.raises(DataError, match=r"found 'n01440764/renamed\.jpg'; the images were renamed"),
    ):
        LabelSets.of_loader("real", loader)


def test_label_sets_of_a_data_set_behind_a_url_are_those_of_the_folder(imagenet, tmp_path):
    files = fsspec.filesystem("memory")
    files.put(str(imagenet), "/label-sets/train", recursive=True)
    try:
        with (
            loader_of(imagenet) as here,
            loader_of("memory://label-sets/train", cache=Cache(folder=tmp_path / "cache")) as there,
        ):
            assert LabelSets.of_loader("real", there) == LabelSets.of_loader("real", here)
            assert [batch.keys for batch in there] == [batch.keys for batch in here]  # and it still iterates
    finally:
        files.rm("/label-sets", recursive=True)


# Files


def test_images_of_a_file_are_known_by_path_name_stem_or_key(imagenet, tmp_path):
    with loader_of(imagenet) as loader:
        (key, path), (_, second), (_, third), (last, _) = list(sample_names(loader))[:4]
        wnids = loader.class_names
        content = {
            path: [wnids[3], 5],
            Path(second).name: [7],
            Path(third).stem: [],
            last: [0, 999],
            "somebody_elses.jpg": [1],
        }
        (tmp_path / "sets.json").write_text(json.dumps(content))
        sets = LabelSets.of_loader(tmp_path / "sets.json", loader)
    assert list(sets.classes.values()) == [(3, 5), (7,), (), (0, 999)]
    table = sets.table([last, "", key])
    assert table.nonzero().tolist() == [[0, 0], [0, 999], [2, 3], [2, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, found"),
        ("[1]", "expected an object of image to a list of its classes"),
        ('{"a.jpg": "dog"}', "expected an object of image to a list of its classes"),
        ('{"a.jpg": [true]}', "expected an object of image to a list of its classes"),
        ('{"nobody.jpg": [1]}', "expected images of .*, found none of them; the first of 1 is 'nobody.jpg'"),
        (
            '{"ILSVRC2012_val_00000002": ["dog"]}',
            "found 1 others, such as 'dog' of 'ILSVRC2012_val_00000002'",
        ),
        ('{"ILSVRC2012_val_00000002": [1000]}', "found 1 others, such as 1000 of"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(content, message, imagenet, tmp_path):
    (tmp_path / "sets.json").write_text(content)
    with loader_of(imagenet) as loader, pytest.raises(DataError, match=message):
        LabelSets.of_loader(tmp_path / "sets.json", loader)


def test_a_file_that_is_not_there_is_a_wrong_call(imagenet, tmp_path):
    with loader_of(imagenet) as loader, pytest.raises(UsageError, match="cannot be read"):
        LabelSets.of_loader(tmp_path / "none.json", loader)


def test_any_right_class_counts_and_images_without_one_are_left_out():
    logits = torch.eye(8)[[0, 1, 2, 3, 4]] + torch.linspace(0.5, 0, 8)
    right = torch.zeros(5, 8, dtype=torch.bool)
    right[0, [0, 7]] = True  # right at once
    right[1, [3]] = True  # within five
    right[2, [7]] = True  # not within five
    right[4, [4]] = True  # padding
    metric = AnyOfAccuracy()
    metric.update(logits[:3], right[:3], torch.tensor([True, True, True]))
    metric.update(logits[3:], right[3:], torch.tensor([True, False]))
    assert metric.compute() == {"any_top1": 1 / 3, "any_top5": 2 / 3, "any_samples": 3, "any_left_out": 1}
    assert AnyOfAccuracy().compute()["any_top1"] is None


def test_precision_over_label_sets_compares_probabilities_and_leaves_out_what_has_no_class():
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    right = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)) < 0.3
    right[3], right[7] = False, True  # no right class; padding
    right[:, 4] = False  # a class that is right for no image has no precision
    valid = torch.arange(12) != 7
    metric = AnyOfPrecision(5, 12)
    # Every image's logits may be moved by a number of its own: the softmax does not change.
    moved = logits + torch.arange(12.0)[:, None]
    for start in (0, 5, 10):
        chosen = slice(start, start + 5)
        metric.update(moved[chosen], right[chosen], valid[chosen])

    def precision(column):
        ranked = [
            bool(right[i, column])
            for i in logits.softmax(dim=1)[:, column].argsort(descending=True).tolist()
            if valid[i] and right[i].any()
        ]
        hits = [rank for rank, hit in enumerate(ranked, 1) if hit]
        return sum(number / rank for number, rank in enumerate(hits, 1)) / len(hits)

    numbers = metric.compute()
    expected = sum(map(precision, range(4))) / 4
    assert numbers["any_mean_average_precision"] == pytest.approx(expected, abs=1e-12)
    assert numbers["any_classes_with_samples"] == 4


@pytest.mark.parametrize("loss", ["soft-target", "multi-label", "semantic-softmax"])
def test_a_model_is_compared_between_images_as_its_loss_says(loss, shards, tmp_path):
    with loader_of(shards / "val", batch_size=12) as loader:
        (batch,) = loader
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, loader.num_classes))
        sets = LabelSets("here", loader.num_classes, {key: (i % 3, 3) for i, key in enumerate(batch.keys)})
        numbers = evaluate_model(model, loader, normalise=True, loss=loss, label_sets=sets)
        tree = loader.tree
    assert tree is not None
    with torch.inference_mode():
        logits = model(batch.images)
    scores = {
        "soft-target": logits.softmax(dim=1),
        "multi-label": logits.sigmoid(),
        "semantic-softmax": DownTheTree(tree)(logits).exp(),
    }
    for name, score in scores.items():
        found = average_precision(score, sets.table(batch.keys))[:4].mean().item()
        assert (found == pytest.approx(numbers["any_mean_average_precision"], abs=1e-9)) == (name == loss)


# Models of timm's


def test_the_middle_of_an_image_is_what_timm_would_cut():
    augment = Preparation(288, 0.9, "center", "bicubic", (0.5,) * 3, (0.5,) * 3).augment
    # timm: the shorter side to floor(288 / 0.9) = 320, then 288 x 288 of its middle.
    assert (augment.centre, augment.square, augment.size) == (0.9, True, 288)
    squash = Preparation(224, 1.0, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3).augment
    assert (squash.centre, squash.square) == (1.0, False)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Six photographs of 96 x 128 to 140 x 100 pixels, stored as they are."""
    folder = tmp_path_factory.mktemp("large")
    rng, wnids = np.random.default_rng(1), load_class_list("imagenet-1k")
    for number in range(6):
        size = (96 + 9 * number, 128) if number % 2 else (140, 100 + number)
        picture(folder / "images" / wnids[10 * number] / f"{number}.png", rng, *size)
    options = PackOptions(image=ImageRecipe(resize="none", quality=100), shard_samples=9)
    pack(folder / "images", folder / "shards", options, class_names=wnids, workers=1)
    return folder


def test_images_come_as_timm_prepares_them(large):
    name = "test_efficientnet"
    preparation = Preparation.of(name)
    transform = create_transform(
        (3, preparation.size, preparation.size),
        mean=preparation.mean,
        std=preparation.std,
        interpolation="bilinear",
        crop_pct=preparation.crop_pct,
        crop_mode=preparation.crop_mode,
    )
    with loader_of(
        large / "shards" / "train", augment=preparation.augment, mean=preparation.mean, std=preparation.std
    ) as loader:
        paths = dict(sample_names(loader))
        for batch in loader:
            for image, key in zip(batch.images, batch.keys, strict=True):
                if key:
                    expected = transform(Image.open(large / "images" / paths[key]).convert("RGB"))
                    # Another filter and one JPEG more: alike, not equal. A window elsewhere differs by far more.
                    assert F.l1_loss(image, expected) < 0.2
                    assert F.l1_loss(image, expected.roll(8, dims=2)) > 0.5


def test_a_timm_model_with_weights_of_a_file_is_evaluated(large, tmp_path, capsys):
    torch.manual_seed(0)
    model = create_model("test_efficientnet", 1000, 160)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "sets.json").write_text(
        json.dumps({str(number): [number, 10 * number] for number in range(6)})
    )
    command = ["evaluate", "timm:test_efficientnet", str(large / "shards" / "train"), "--device", "cpu"]
    options = ["--weights", str(tmp_path / "weights.pth"), "--label-sets", str(tmp_path / "sets.json")]
    assert main([*command, *options, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["samples"], numbers["any_samples"], numbers["any_left_out"]) == (6, 6, 0)
    assert numbers["preparation"]["crop_pct"] == timm.get_pretrained_cfg("test_efficientnet").crop_pct
    assert any("area averages" in line for line in numbers["differs"])
    assert any("JPEG quality 100" in line for line in numbers["differs"])
    assert main([*command, *options]) == 0
    assert "differs from timm's own" in capsys.readouterr().out
    # The numbers are those of the model itself.
    preparation = Preparation.of("test_efficientnet")
    with loader_of(
        large / "shards" / "train",
        augment=preparation.augment,
        mean=preparation.mean,
        std=preparation.std,
        batch_size=6,
    ) as loader:
        (batch,) = loader
    with torch.inference_mode():
        best = model.eval()(batch.images).argmax(dim=1)
    assert numbers["top1"] == float((best == batch.classes).float().mean())
    assert 0 < numbers["any_mean_average_precision"] < 1


def test_a_model_for_other_classes_is_refused(shards, large, tmp_path):
    with pytest.raises(
        DataError, match=r"do not belong together: class list: .*1,000 classes, not 6.*--labels"
    ):
        evaluate_timm("test_efficientnet", str(shards / "val"), weights=tmp_path / "none")
    torch.save(create_model("test_efficientnet", 10, 160).state_dict(), tmp_path / "ten.pth")
    with pytest.raises(DataError, match="found a head of another size"):
        evaluate_timm("test_efficientnet", str(large / "shards" / "train"), weights=tmp_path / "ten.pth")
    with pytest.raises(UsageError, match="expected a name that timm"):
        evaluate_timm("no_such_model", str(shards / "val"))


def test_a_part_of_imagenet_is_read_with_all_its_classes(large, tmp_path):
    options = PackOptions(image=ImageRecipe(resize="none", quality=100), shard_samples=9)
    pack(large / "images", tmp_path / "part", options, workers=1)  # its own six classes
    torch.save(create_model("test_efficientnet", 1000, 160).state_dict(), tmp_path / "weights.pth")
    weights = {"weights": tmp_path / "weights.pth", "batch_size": 6}
    whole = evaluate_timm("test_efficientnet", str(large / "shards" / "train"), **weights)
    part = evaluate_timm("test_efficientnet", str(tmp_path / "part" / "train"), **weights)
    assert {**whole, "dataset": ""} == {**part, "dataset": ""}


@pytest.fixture
def own_weights(tmp_path, hub):
    """The weights of test_efficientnet, which the hub brings."""
    torch.manual_seed(0)
    weights = timm.create_model("test_efficientnet").state_dict()
    torch.save(weights, tmp_path / "hub.pth")
    hub(tmp_path / "hub.pth")
    return weights


def test_timms_own_weights_teach_some_of_their_classes(own_weights, large, tmp_path):
    options = PackOptions(image=ImageRecipe(size=32), shard_samples=9)
    pack(large / "images", tmp_path / "part", options, workers=1)  # classes 0, 10, ... 50 of imagenet-1k
    part = str(tmp_path / "part" / "train")
    recipe = dataclasses.replace(live_distillation(), epochs=1, global_batch=6, image_size=32)
    result = train(
        recipe, part, model="test_resnet", teacher="timm:test_efficientnet", out=tmp_path / "run", log=print
    )
    assert result.steps == 1
    with loader_of(part, batch_size=6) as loader:
        labels = LabelSpace.of_loader(loader)
        (batch,) = loader
    teacher = TimmTeacher("timm:test_efficientnet", recipe, labels=labels, dataset=part)
    preparation = Preparation.of("test_efficientnet")
    model = timm.create_model("test_efficientnet").eval()
    model.load_state_dict(own_weights)
    pixels = batch.images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    pixels = F.interpolate(pixels, (preparation.size,) * 2, mode="bilinear", antialias=True)
    own_scale = (pixels - torch.tensor(preparation.mean)[:, None, None]) / torch.tensor(preparation.std)[
        :, None, None
    ]
    with torch.inference_mode():
        expected = model(own_scale)[:, [0, 10, 20, 30, 40, 50]]
    torch.testing.assert_close(teacher(batch.images), expected, rtol=1e-3, atol=1e-3)


def test_timms_weights_do_not_teach_levels_or_classes_that_they_do_not_know(shards, tmp_path):
    tiny = {"epochs": 1, "global_batch": 8, "image_size": 32}
    options = {"model": "test_resnet", "teacher": "timm:test_efficientnet", "log": print}
    with pytest.raises(UsageError, match="which knows leaves"):
        train(
            dataclasses.replace(semantic_kd(), **tiny), str(shards / "train"), out=tmp_path / "kd", **options
        )
    recipe = dataclasses.replace(live_distillation(), **tiny)
    with pytest.raises(DataError, match=r"among its 1000, by wnid, found 6 others, such as 'cat'"):
        train(recipe, str(shards / "train"), out=tmp_path / "live", **options)


def test_weights_without_a_timm_model_are_a_wrong_call(shards, capsys):
    assert (
        main(["evaluate", "checkpoint.pt", str(shards / "val"), "--weights", "x.pth", "--device", "cpu"]) == 2
    )
    assert "--weights: expected timm:NAME" in capsys.readouterr().err


def test_what_a_stored_image_no_longer_allows_is_said(imagenet):
    preparation = Preparation.of("resnet50.a1_in1k")
    assert preparation.size == 288  # the test size, not that of training
    lines = preparation.differences(Manifest.load(imagenet))
    assert any("stored squished" in line for line in lines)
    assert any("stored with 32 pixels, timm resizes originals to 288" in line for line in lines)
