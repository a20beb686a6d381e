"""The weights that training begins with: what is loaded, what is not, and what is refused."""

import json
import re
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
from timm.data.imagenet_info import ImageNetInfo
from tiny_runs import tiny

from softshard.shards import LabelTree, Manifest, PackOptions, pack
from softshard.shards.errors import DataError, UsageError
from softshard.training import semantic_softmax, single_label, transfer
from softshard.training import start as start_module
from softshard.training.checkpoint import load_checkpoint
from softshard.training.label_space import LabelSpace
from softshard.training.models import create_model
from softshard.training.start import load_start
from softshard.training.train import train

HEAD = {"fc.weight", "fc.bias"}


def run(recipe, dataset, out, **options):
    options = {"model": "test_resnet", "log": lambda line: None, **options}
    return train(recipe, str(dataset), out=out, **options)


def load(source, num_classes=6, **options):
    """Load weights into a new model; returns both the report and the model."""
    model = create_model("test_resnet", num_classes, 32)
    labels = LabelSpace(tuple(f"class {i}" for i in range(num_classes)), "a" * 64, None)
    return load_start(
        model, "test_resnet", source, image_size=32, labels=labels, dataset="shards", **options
    ), model


@pytest.fixture
def weights(tmp_path):
    """A file of weights with a head for 11 classes, and the weights."""
    state = timm.create_model("test_resnet", num_classes=11).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    return tmp_path / "weights.pt", state


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A finished run of semantic softmax with averaged weights."""
    return run(tiny(semantic_softmax(), ema_decay=0.9), shards / "train", tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def other(shards, tmp_path_factory):
    """The same images with another tree, which also makes another class list."""
    folder = tmp_path_factory.mktemp("other")
    names = ("cat", "dog", "crow", "gull")
    tree = LabelTree.from_table(names, [(name, "animal") for name in names])
    pack(shards.parent / "images", folder, PackOptions(), tree=tree, workers=1)
    return folder / "train"


def test_all_but_the_head_is_loaded_and_reported(weights):
    path, state = weights
    report, model = load(path)
    assert set(report.new) == set(report.not_used) == HEAD
    assert report.new["fc.bias"] == [6]
    assert report.not_used["fc.bias"] == [11]
    assert set(report.loaded) == state.keys() - HEAD
    for name in report.loaded:
        assert torch.equal(model.state_dict()[name], state[name])
    assert f"begins with {path}: {len(state) - 2} of {len(state)} weights loaded" in report.line()
    assert "new: fc.weight [6, " in report.line()


def test_a_head_that_fits_is_loaded_unless_a_new_one_was_asked_for(weights):
    path, state = weights
    report, model = load(path, num_classes=11)
    assert (report.new, report.not_used, report.loaded_share) == ({}, {}, 1.0)
    assert torch.equal(model.state_dict()["fc.weight"], state["fc.weight"])
    report, model = load(path, num_classes=11, new_head=True)
    assert set(report.new) == set(report.not_used) == HEAD
    assert not torch.equal(model.state_dict()["fc.weight"], state["fc.weight"])


def test_weights_without_a_head_make_a_new_one_where_it_was_asked_for(weights):
    path, state = weights
    torch.save({name: tensor for name, tensor in state.items() if name not in HEAD}, path)
    assert set(load(path, new_head=True)[0].new) == HEAD
    with pytest.raises(DataError, match=r"found no fc.bias; no fc.weight"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.0.weight": torch.zeros(5, 3, 3, 3)}, r"found conv1.0.weight \(5, 3, 3, 3\) for "),
        ({"extra.weight": torch.zeros(1)}, "found an unknown extra.weight"),
        ({"conv1.0.weight": None}, "found no conv1.0.weight"),
    ],
)
@pytest.mark.parametrize("new_head", [False, True])
def test_anything_but_the_head_that_does_not_fit_is_refused(change, message, new_head, weights):
    path, state = weights
    torch.save({name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}, path)
    with pytest.raises(
        DataError, match=f"expected weights of timm's 'test_resnet', {message}.*another architecture"
    ):
        load(path, new_head=new_head)


def test_weights_of_old_versions_of_torch_have_no_batch_counters(weights):
    path, state = weights
    torch.save({name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}, path)
    assert any("num_batches_tracked" in name for name in load(path)[0].new)


def test_timms_own_weights_are_found_by_their_name(weights, hub):
    path, _ = weights
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    hub(path)
    report, model = load("test_resnet.r160_in1k")
    assert (report.source, report.not_used["fc.bias"]) == ("test_resnet.r160_in1k", [1000])
    assert torch.equal(model.state_dict()["conv1.0.weight"], torch.load(path)["conv1.0.weight"])


@pytest.mark.parametrize("names", ["timm's", "others", "another order"])
def test_timms_head_is_taken_for_its_own_classes_alone(weights, hub, names):
    path, _ = weights
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    hub(path)
    wnids = ImageNetInfo("imagenet-1k").label_names()
    class_names = {
        "timm's": wnids,
        "others": [f"class {i}" for i in range(1000)],
        "another order": [*wnids[1:], wnids[0]],
    }[names]
    model = create_model("test_resnet", 1000, 32)
    drawn = model.state_dict()["fc.bias"].clone()
    labels = LabelSpace(tuple(class_names), "a" * 64, None)
    report = load_start(
        model, "test_resnet", "test_resnet.r160_in1k", image_size=32, labels=labels, dataset="shards"
    )
    stored = torch.load(path)
    assert torch.equal(model.state_dict()["conv1.0.weight"], stored["conv1.0.weight"])
    if names == "timm's":
        assert (report.not_used, report.head) == ({}, "")
        assert torch.equal(model.state_dict()["fc.bias"], stored["fc.bias"])
    else:
        assert set(report.not_used) == set(report.new) == HEAD
        assert torch.equal(model.state_dict()["fc.bias"], drawn)
        how = "both 1,000 classes" if names == "others" else "the same 1,000 classes in another order"
        assert f"the head is new: timm's is for other classes ({how}; the first that differs" in report.line()


def test_names_that_are_neither_a_file_nor_timms_are_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"found nothing at resnet51x; nor does timm .* know a model of that name"
    ):
        load("resnet51x")
    with pytest.raises(
        UsageError, match=r"expected weights of timm's 'test_resnet', found the name resnet50\.a1_in1k"
    ):
        load("resnet50.a1_in1k")
    with pytest.raises(UsageError, match="expected a file of weights, found the folder"):
        load(tmp_path)


def test_a_run_writes_the_whole_report_and_says_it(weights, shards, tmp_path):
    lines = []
    run(tiny(transfer()), shards / "train", tmp_path / "out", init_from=weights[0], log=lines.append)
    report = json.loads((tmp_path / "out" / "init.json").read_text())
    assert set(report["new"]) == HEAD
    assert report["source"] == str(weights[0])
    assert any(line.startswith(f"begins with {weights[0]}: ") and "init.json" in line for line in lines)


def test_averaged_weights_of_a_checkpoint_are_what_another_run_begins_with(trained, shards, tmp_path):
    recipe = tiny(semantic_softmax(), lr=1e-12, weight_decay=0.0)
    begun = run(recipe, shards / "train", tmp_path, init_from=trained.checkpoint)
    average = load_checkpoint(trained.checkpoint).model_ema["fc.weight"]
    torch.testing.assert_close(
        load_checkpoint(begun.checkpoint).model["fc.weight"], average, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("which", ["checkpoint", "weights"])
def test_weights_for_another_class_list_and_tree_are_refused_with_both_named(which, trained, other, tmp_path):
    source, saved = getattr(trained, which), load_checkpoint(trained.checkpoint)
    found = Manifest.load(other)
    with pytest.raises(DataError) as error:
        run(tiny(single_label()), other, tmp_path / "out", init_from=source)
    message = str(error.value)
    assert f"{source} and data set '{other}' do not belong together" in message
    assert f"class list: expected {saved.classes_sha256}, found {found.classes_sha256}" in message
    assert "6 classes, not 5; the first that differs is class 4: 'mammal', not 'animal'" in message
    assert f"label tree: expected {saved.tree_sha256}, found {found.tree_sha256}" in message
    assert re.search(
        r"another parent for 4 of the classes in both, the first of them 'cat': 'mammal', not 'animal'",
        message,
    )
    assert "--new-head" in message
    # Where a new head is asked for the classes need not be the same.
    run(tiny(single_label(), new_head=True), other, tmp_path / "out", init_from=source)
    assert "fc.weight" in json.loads((tmp_path / "out" / "init.json").read_text())["not_used"]


@pytest.mark.parametrize("changes", [{}, {"freeze": True}])
def test_a_transfer_from_nothing_is_refused_but_not_its_continuation(changes, weights, shards, tmp_path):
    recipe = tiny(transfer(), **changes)
    with pytest.raises(
        UsageError, match=r"expected trained weights to begin with.*Give --init-from or --pretrained"
    ):
        run(recipe, shards / "train", tmp_path / "out")
    first = run(recipe, shards / "train", tmp_path / "out", init_from=weights[0])
    assert run(recipe, shards / "train", tmp_path / "out", resume=True) == first


def test_weights_with_code_in_them_are_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "weights.pt")
    for read in (load_checkpoint, load):  # torch's own text advises loading the file with weights_only=False
        with pytest.raises(
            DataError, match=r"weights\.pt: expected .* read \(it holds objects other than tensors"
        ):
            read(tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


def test_code_in_weights_is_refused_whatever_timms_default_is(tmp_path, monkeypatch):
    asked = []

    def load_weights(path, **options):
        asked.append(options)
        return timm.create_model("test_resnet").state_dict()

    monkeypatch.setattr(start_module, "load_weights", load_weights)
    torch.save({}, tmp_path / "weights.pt")
    load(tmp_path / "weights.pt")
    assert asked == [{"weights_only": True}]


@pytest.mark.parametrize("error", [FileNotFoundError("not in the local cache\nmore"), URLError("no route")])
def test_weights_that_cannot_be_downloaded_are_refused_with_what_to_do(error, monkeypatch):
    def offline(*_args, **_options):
        raise error

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError, match=r"model resnet50: .*where there is a network.*--init-from FILE"):
        create_model("resnet50", 1000, 224, pretrained=True)


def test_an_architecture_without_weights_is_named():
    with pytest.raises(UsageError, match="model botnet50ts_256: expected an architecture with weights"):
        create_model("botnet50ts_256", 6, 32, pretrained=True)
