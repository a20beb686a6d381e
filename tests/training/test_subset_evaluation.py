"""`softshard subset evaluate`: curves from CSV, whatever is wrong with them, and what is made of them."""

import csv
import io
import json

import numpy as np
import pytest
from html_elements import Elements

from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.training.curves import read_curves
from softshard.training.subset_evaluation import evaluate_subset, format_evaluation, with_images

# Three models; on the full set the ranking stays from epoch 3, on the subset from epoch 2.
FULL = {"a": [0.10, 0.30, 0.50, 0.60], "b": [0.20, 0.20, 0.40, 0.50], "c": [0.30, 0.25, 0.30, 0.40]}
SUBSET = {"a": [0.10, 0.40, 0.45], "b": [0.20, 0.30, 0.35], "c": [0.05, 0.20, 0.25]}


def lines(curves, name=None, start=1):
    cells = [] if name is None else [name]
    return [
        [*cells, model, epoch, accuracy]
        for model, accuracies in curves.items()
        for epoch, accuracy in enumerate(accuracies, start)
    ]


def text(rows, header=("set", "model", "epoch", "accuracy"), end="\n"):
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerows([header, *rows])
    return out.getvalue()


@pytest.fixture
def both(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(text([*lines(FULL, "full"), *lines(SUBSET, "subset")]))
    return path


def assert_as_given(full, subset):
    assert full.models == subset.models == ("a", "b", "c")
    assert full.epochs == (1, 2, 3, 4)
    assert np.array_equal(full.accuracy, list(FULL.values()))
    assert np.array_equal(subset.accuracy, list(SUBSET.values()))


def test_curves_are_read_from_one_file_or_two(both, tmp_path):
    assert_as_given(*read_curves([both]))
    for name, curves in (("f.csv", FULL), ("s.csv", SUBSET)):
        (tmp_path / name).write_text(text(lines(curves), ("model", "epoch", "accuracy")))
    assert_as_given(*read_curves([tmp_path / "f.csv", tmp_path / "s.csv"]))


def test_spellings_of_a_csv_make_no_difference(tmp_path):
    rows = [*lines(FULL, "full"), *lines(SUBSET, "subset")]
    rows = [[row[3], "a note, quoted", row[0], f" {row[1]} ", row[2]] for row in reversed(rows)]
    rows = rows[::-1]
    content = "\ufeff" + text(rows, ("accuracy", "note", "set", "model", "epoch"), "\r\n") + "\r\n\r\n"
    (tmp_path / "c.csv").write_bytes(content.encode())
    assert_as_given(*read_curves([tmp_path / "c.csv"]))


def test_percent_is_asked_for(both, tmp_path):
    rows = [[*row[:3], 100 * row[3]] for row in [*lines(FULL, "full"), *lines(SUBSET, "subset")]]
    (tmp_path / "p.csv").write_text(text(rows))
    full, _ = read_curves([tmp_path / "p.csv"], percent=True)
    assert np.allclose(full.accuracy, list(FULL.values()))
    with pytest.raises(
        DataError, match=r"expected an accuracy from 0 to 1, found '10\.0'; for percent: --percent"
    ):
        read_curves([tmp_path / "p.csv"])


def test_images_are_read_from_their_columns(tmp_path):
    rows = [[*row, 1000, 50] for row in lines(FULL, "full")] + [
        [*row, 100, 50] for row in lines(SUBSET, "subset")
    ]
    header = ("set", "model", "epoch", "accuracy", "train_images", "val_images")
    (tmp_path / "c.csv").write_text(text(rows, header))
    full, subset = read_curves([tmp_path / "c.csv"])
    assert (full.train_images, full.val_images, subset.train_images) == (1000, 50, 100)
    assert with_images(full, train_images=1000).train_images == 1000
    with pytest.raises(
        UsageError, match="full set: train_images: expected the 1,000 that the file gives, found 7"
    ):
        with_images(full, train_images=7, where="full set:")
    rows[1][4] = 999
    (tmp_path / "c.csv").write_text(text(rows, header))
    with pytest.raises(
        DataError, match="line 3: expected one number of train_images for the full set, 1,000, found 999"
    ):
        read_curves([tmp_path / "c.csv"])


GOOD = "set,model,epoch,accuracy\nfull,a,1,.1\nfull,b,1,.2\nsubset,a,1,.1\nsubset,b,1,.2\n"


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("", ["expected the columns set, model, epoch, accuracy, found none"]),
        ("model,epoch,accuracy\na,1,.5\n", ["expected the columns set, found model, epoch, accuracy; with two files"]),
        ("set,model,model,epoch,accuracy\n", ["expected distinct columns, found twice: 'model'"]),
        ("set,model,epoch,accuracy\n", ["expected lines with accuracies, found none"]),
        (GOOD + "full,a,2\n", ["line 6: expected 4 cells as in the first line, found 3"]),
        (GOOD + "full,a,2,.5,9\n", ["line 6: expected 4 cells as in the first line, found 5"]),
        (GOOD + "full,a,two,.5\n", ["line 6: expected an epoch from 1 .*, found 'two'"]),
        (GOOD + "full,a,0,.5\n", ["line 6: expected an epoch from 1 .*, found '0'"]),
        (GOOD + "full,a,1.5,.5\n", ["line 6: expected an epoch from 1 .*, found '1.5'"]),
        (GOOD + "full,a,2,nan\n", ["line 6: expected an accuracy from 0 to 1, found 'nan'"]),
        (GOOD + "full,a,2,-.5\n", ["line 6: expected an accuracy from 0 to 1, found '-.5'"]),
        (GOOD + "full,a,2,\n", ["line 6: expected an accuracy from 0 to 1, found ''"]),
        (GOOD + "half,a,2,.5\n", ["line 6: expected the set full or subset, found 'half'"]),
        (GOOD + "full,,2,.5\n", ["line 6: expected a model, found an empty cell"]),
        (GOOD + "full,a,1,.1\n", [r"line 6: .* found 'a', epoch 1, of the full set again; the first stands in .*line 2"]),
        (GOOD + "full,a,2,.5\nfull,a,4,.5\n",
         ["model 'b': expected the epochs that others have on the full set, found none for 2, 4"]),
        (GOOD + "full,c,1,.5\nsubset,d,1,.5\n",
         ["model 'c': expected on both sets, found on the full set alone",
          "model 'd': expected on both sets, found on the subset set alone"]),
        ("set,model,epoch,accuracy\nfull,a,1,.1\n", ["expected accuracies on the subset set, found none"]),
        ("set,model,epoch,accuracy\nfull,a,1,.1\nsubset,a,1,.1\n", ["expected two models or more to rank, found 1"]),
        # All of them, each with its line.
        (GOOD + "full,a\nfull,b,x,y\nother,b,2,.5\n",
         ["line 6: .* cells", "line 7: .* epoch", "line 7: .* accuracy", "line 8: .* set"]),
    ],
)  # fmt: skip
def test_whatever_is_wrong_with_a_file_is_listed(content, messages, tmp_path):
    path = tmp_path / "c.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_curves([path])
    found = str(caught.value).splitlines()
    assert len(found) == len(messages)
    for line, message in zip(found, messages, strict=True):
        assert line.startswith(str(path))
        with pytest.raises(DataError, match=message):
            raise DataError(line)


def test_files_that_are_no_text_or_too_many_problems(tmp_path):
    (tmp_path / "c.csv").write_bytes(b"set,model\xff\n")
    with pytest.raises(DataError, match="expected UTF-8 text, found byte 0xff"):
        read_curves([tmp_path / "c.csv"])
    (tmp_path / "c.csv").write_text(GOOD + "full,a\n" * 30)
    with pytest.raises(DataError) as caught:
        read_curves([tmp_path / "c.csv"])
    assert str(caught.value).splitlines()[20:] == ["and 10 more problems"]
    (tmp_path / "s.csv").write_text(GOOD)
    with pytest.raises(
        DataError, match="expected one file where a column 'set' says which set, found two files"
    ):
        read_curves([tmp_path / "s.csv", tmp_path / "s.csv"])


def evaluated(both, **images):
    full, subset = read_curves([both])
    full = with_images(full, train_images=images.get("full"), val_images=images.get("val"))
    subset = with_images(subset, train_images=images.get("subset"), val_images=images.get("val"))
    return evaluate_subset(full, subset, draws=50)


def test_images_looped_are_training_images_times_the_epoch_from_which_the_ranking_stays(both):
    result = evaluated(both, full=1000, subset=100, val=10_000)
    assert result["full"]["stable_epoch"] == 3
    assert result["full"]["images_looped"] == 3000
    assert result["subset"]["stable_epoch"] == 2
    assert result["subset"]["images_looped"] == 200
    assert result["has_value"] is True
    assert result["agreement"]["kendall_tau_b"] == pytest.approx(1)
    assert result["agreement"]["pairs"] == 3
    assert result["agreement"]["inversions"] == 0
    assert evaluated(both, full=100, subset=1000)["has_value"] is False
    assert evaluated(both)["has_value"] is None
    shown = format_evaluation(result)
    assert " ".join(shown.splitlines()[5].split()) == "images looped until then 3,000 200"
    assert "(full set / subset = 15.00)" in shown


def test_inversions_are_judged_where_the_validation_images_are_known(both, tmp_path):
    swapped = {**SUBSET, "a": SUBSET["b"], "b": SUBSET["a"]}
    path = tmp_path / "swapped.csv"
    path.write_text(text([*lines(FULL, "full"), *lines(swapped, "subset")]))
    many, few, none = (evaluated(path, val=images)["agreement"] for images in (10_000, 100, None))
    assert [each["inversions"] for each in (many, few, none)] == [1, 1, 1]
    assert [each["inversions_beyond_noise"] for each in (many, few, none)] == [1, 0, None]
    assert many["largest_inversions"] == [
        {"better": "a", "worse": "b", "full_gap": pytest.approx(0.1), "subset_gap": pytest.approx(0.1),
         "beyond_noise": True}
    ]  # fmt: skip
    assert many["kendall_tau_b"] == pytest.approx(1 / 3)


def test_the_command_prints_a_table_and_writes_a_page_with_one_plot(both, tmp_path, capsys):
    command = ["subset", "evaluate", str(both), "--train-images-full", "1000", "--train-images-subset", "100"]
    page = tmp_path / "new" / "page.html"
    assert main([*command, "--html", str(page)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["full", "subset"]
    assert " ".join(shown[4].split()) == "final ranking from epoch 3 2"
    elements = Elements(page.read_text())
    assert len(elements.named("polyline")) == 2
    assert len(elements.named("figure")) == 1
    assert "3 models: Kendall's tau-b 1.000" in elements.text
    assert main([*command, "--json", "--seed", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seed"] == 3
    assert [point["epoch"] for point in result["curves"]["subset"]] == [1, 2, 3]
    assert [row["full_rank"] for row in result["models"]] == [1, 2, 3]
    assert main([*command, "--seed", "-1"]) == 2
    assert "expected seed as an int from 0" in capsys.readouterr().err


def test_the_command_refuses_three_files_and_bad_ones(both, tmp_path, capsys):
    assert main(["subset", "evaluate", *[str(both)] * 3]) == 2
    assert "expected one CSV, or the full set's and the subset's, found 3" in capsys.readouterr().err
    assert main(["subset", "evaluate", str(both), "--train-images-full", "0"]) == 2
    assert "full set: train_images: expected a number from 1, found 0" in capsys.readouterr().err
    (tmp_path / "bad.csv").write_text(GOOD + "full,a\n")
    assert main(["subset", "evaluate", str(tmp_path / "bad.csv")]) == 1
    assert main(["subset", "evaluate", str(tmp_path / "none.csv")]) == 2


@pytest.mark.shared
def test_timms_accuracies_through_the_command(shared_data, tmp_path, capsys):
    """ReaL's labels for ImageNet's: 1,556 models, one epoch."""
    for name in ("imagenet", "imagenet-real"):
        with open(shared_data / "timm_results" / f"results-{name}.csv", newline="") as file:
            rows = [[f"{row['model']} {row['img_size']}", 1, row["top1"]] for row in csv.DictReader(file)]
        (tmp_path / f"{name}.csv").write_text(text(rows, ("model", "epoch", "accuracy")))
    command = ["subset", "evaluate", str(tmp_path / "imagenet.csv"), str(tmp_path / "imagenet-real.csv")]
    images = ["--val-images-full", "50000", "--val-images-subset", "46837"]
    assert main([*command, *images, "--percent", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    found = result["agreement"]
    assert len(result["models"]) == 1556
    assert result["models"][0] == {
        "model": "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k 448", "full_accuracy": pytest.approx(0.90056),
        "subset_accuracy": pytest.approx(0.91144), "full_rank": 1, "subset_rank": 1,
    }  # fmt: skip
    assert found["pairs"] == 1556 * 1555 // 2
    # Nearly every pair that the two sets order differently is nearly equal on one of them.
    assert 0 < found["inversions_beyond_noise"] < 0.05 * found["inversions"]
    listed = found["largest_inversions"]
    assert len(listed) == 20
    assert all(pair["full_gap"] > 0 < pair["subset_gap"] for pair in listed)
