"""Images with several right classes: ImageNet's ReaL, files of one's own, and what is measured over them."""

import csv
import json
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import torch
from tiny_runs import whole_pass

from softshard.loaders import Cache
from softshard.shards import PackOptions, pack
from softshard.shards.classes import load_class_list
from softshard.shards.errors import DataError, UsageError
from softshard.training.average_precision import average_precision
from softshard.training.down_the_tree import DownTheTree
from softshard.training.evaluate import evaluate_model
from softshard.training.label_sets import AnyOfAccuracy, AnyOfPrecision, LabelSets, real_labels, sample_names


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
    with whole_pass(imagenet) as loader:
        sets = LabelSets.of_loader("real", loader)
        names = dict(sample_names(loader))
    for key, path in names.items():
        assert f"ILSVRC2012_val_{int(path[-13:-5]):08}.JPEG" in path
        assert sets.classes[key] == tuple(real_labels()[int(path[-13:-5]) - 1])
    assert sorted(map(len, sets.classes.values()))[0] == 0  # the first image has no right class


def test_real_follows_the_classes_that_a_data_set_is_read_with(imagenet):
    wnids = load_class_list("imagenet-1k")
    chosen = [wnids[795], wnids[970], wnids[230]]
    with whole_pass(imagenet, labels=chosen) as loader:
        sets = LabelSets.of_loader("real", loader)
        keys = dict(sample_names(loader))
    of_second = next(key for key, path in keys.items() if path.endswith("00000002.JPEG"))
    assert sets.classes[of_second] == (1, 0)  # 970 and 795, in that class list
    of_third = next(key for key, path in keys.items() if path.endswith("00000003.JPEG"))
    assert sets.classes[of_third] == (2,)  # 230; 231 is not in the list


def test_real_wants_imagenets_names_and_classes(imagenet, shards, tmp_path):
    with (
        whole_pass(shards / "val") as loader,
        pytest.raises(DataError, match="expected classes of imagenet-1k"),
    ):
        LabelSets.of_loader("real", loader)
    folder = tmp_path / "images" / load_class_list("imagenet-1k")[0]
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "renamed.jpg"), np.zeros((40, 40, 3), np.uint8))
    pack(tmp_path / "images", tmp_path / "shards", PackOptions(shard_samples=9), workers=1)
    with (
        whole_pass(tmp_path / "shards" / "train") as loader,
        pytest.raises(DataError, match=r"found 'n01440764/renamed\.jpg'; the images were renamed"),
    ):
        LabelSets.of_loader("real", loader)


def test_label_sets_of_a_data_set_behind_a_url_are_those_of_the_folder(imagenet, tmp_path):
    files = fsspec.filesystem("memory")
    files.put(str(imagenet), "/label-sets/train", recursive=True)
    try:
        with (
            whole_pass(imagenet) as here,
            whole_pass("memory://label-sets/train", cache=Cache(folder=tmp_path / "cache")) as there,
        ):
            assert LabelSets.of_loader("real", there) == LabelSets.of_loader("real", here)
            assert [batch.keys for batch in there] == [batch.keys for batch in here]  # and it still iterates
    finally:
        files.rm("/label-sets", recursive=True)


def test_images_of_a_file_are_known_by_path_name_stem_or_key(imagenet, tmp_path):
    with whole_pass(imagenet) as loader:
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
    with whole_pass(imagenet) as loader, pytest.raises(DataError, match=message):
        LabelSets.of_loader(tmp_path / "sets.json", loader)


def test_a_file_that_is_not_there_is_a_wrong_call(imagenet, tmp_path):
    with whole_pass(imagenet) as loader, pytest.raises(UsageError, match="cannot be read"):
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
def test_a_model_is_compared_between_images_as_its_loss_says(loss, shards):
    with whole_pass(shards / "val", batch_size=12) as loader:
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
