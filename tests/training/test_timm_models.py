"""Models of timm's with weights of their own: their images, their numbers, and as teachers."""

import dataclasses
import json

import pytest
import timm
import torch
from json_page import read_json
from PIL import Image
from timm.data import create_transform
from tiny_runs import whole_pass
from torch.nn import functional as F

from softshard.loaders.decode import MEAN, STD
from softshard.shards import ImageRecipe, PackOptions, pack
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.shards.manifest import Manifest
from softshard.training import live_distillation, semantic_kd
from softshard.training.confusion import confusion_of_model
from softshard.training.ensemble import evaluate_ensemble
from softshard.training.evaluate import evaluate
from softshard.training.evaluate_timm import evaluate_timm
from softshard.training.label_sets import sample_names
from softshard.training.label_space import LabelSpace
from softshard.training.models import create_model
from softshard.training.preparation import Preparation
from softshard.training.teacher_timm import TimmTeacher
from softshard.training.train import train


def test_the_middle_of_an_image_is_what_timm_would_cut():
    augment = Preparation(288, 0.9, "center", "bicubic", (0.5,) * 3, (0.5,) * 3).augment
    # timm: the shorter side to floor(288 / 0.9) = 320, then 288 x 288 of its middle.
    assert (augment.centre, augment.square, augment.size) == (0.9, True, 288)
    squash = Preparation(224, 1.0, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3).augment
    assert (squash.centre, squash.square) == (1.0, False)


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
    with whole_pass(
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
    numbers = read_json("evaluate", capsys.readouterr().out)
    assert (numbers["samples"], numbers["any_samples"], numbers["any_left_out"]) == (6, 6, 0)
    assert numbers["preparation"]["crop_pct"] == timm.get_pretrained_cfg("test_efficientnet").crop_pct
    assert any("area averages" in line for line in numbers["differs"])
    assert any("JPEG quality 100" in line for line in numbers["differs"])
    assert main([*command, *options]) == 0
    assert "differs from timm's own" in capsys.readouterr().out
    # The numbers are those of the model itself.
    preparation = Preparation.of("test_efficientnet")
    with whole_pass(
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


@pytest.mark.parametrize(
    ("look", "option"),
    [
        (evaluate, "faults"),
        (evaluate_timm, "connection"),
        (confusion_of_model, "connection"),
        (evaluate_ensemble, "subset"),
    ],
)
def test_options_of_a_loader_that_a_pass_has_not_are_refused(look, option):
    with pytest.raises(TypeError, match=f"expected options of a pass .*, found {option}"):
        look("nothing", "nowhere", **{option: None})


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
    with whole_pass(part, batch_size=6) as loader:
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
