"""Reading down the tree against products along every path, and what `predict` and `evaluate` make of it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from softshard.shards import LabelTree
from softshard.shards.cli import main
from softshard.shards.errors import UsageError
from softshard.training import multi_label_bce, semantic_softmax
from softshard.training.ancestors import leaf_classes
from softshard.training.down_the_tree import DownTheTree, LeavesDownTheTree
from softshard.training.evaluate import evaluate
from softshard.training.predict import Predictor, _Reader
from softshard.training.train import train

PAIRS = [
    ("oak", "tree"),
    ("elm", "tree"),
    ("tree", "plant"),
    ("moss", "plant"),
    ("cat", "animal"),
    ("oak", "landmark"),
    ("tower", "landmark"),
    ("landmark", ""),
]


def tree_of(rule, levels=None):
    return LabelTree.from_table(None, PAIRS, parents=rule, levels=levels)


def slow_probability(tree, logits, index, num_levels):
    """The sum over parents of the parent's probability times the class's share among the parent's children."""

    def within_level(node):
        members = tree.level_classes[int(tree.levels[node])].tolist()
        return math.exp(logits[node]) / sum(math.exp(logits[i]) for i in members)

    total = 0.0
    for parent in tree.all_parents[index] or (None,):
        children = [
            node
            for node in range(len(tree.classes))
            if tree.levels[node] < num_levels
            and (parent in tree.all_parents[node] if parent is not None else not tree.all_parents[node])
        ]
        share = within_level(index) / sum(within_level(node) for node in children)
        above = 1.0 if parent is None else slow_probability(tree, logits, parent, num_levels)
        total += above * share
    return total


@pytest.mark.parametrize("rule", ["first", "all-paths"])
@pytest.mark.parametrize("levels", [1, 2, None])
def test_a_class_has_its_parents_probability_times_its_share_among_its_sisters(rule, levels):
    tree = tree_of(rule)
    used = levels or tree.num_levels
    logits = 2 * torch.randn(4, len(tree.classes), generator=torch.manual_seed(0), dtype=torch.float64)
    found = DownTheTree(tree, levels)(logits)
    for row, read in zip(logits.tolist(), found.exp().tolist(), strict=True):
        for index, probability in enumerate(read):
            expected = slow_probability(tree, row, index, used) if tree.levels[index] < used else 0.0
            assert probability == pytest.approx(expected, rel=1e-12)


def test_the_rules_differ_where_a_class_has_two_parents():
    one, all_of_them = tree_of("first"), tree_of("all-paths")
    assert (one.num_paths, all_of_them.num_paths) == (1, 2)
    logits = torch.zeros(1, len(one.classes))
    oak = one.class_index["oak"]
    assert DownTheTree(one)(logits)[0, oak].exp().item() == pytest.approx(1 / 3 * 1 / 2 * 1 / 2)
    assert DownTheTree(all_of_them)(logits)[0, all_of_them.class_index["oak"]].exp() > 1 / 12


@pytest.mark.parametrize("rule", ["first", "all-paths"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_leaves_share_the_whole_however_large_the_logits_are(rule, scale):
    tree = tree_of(rule)
    logits = scale * torch.randn(6, len(tree.classes), generator=torch.manual_seed(1))
    read = DownTheTree(tree)(logits)
    assert not read.isnan().any()
    torch.testing.assert_close(read.exp()[:, leaf_classes(tree)].sum(dim=1), torch.ones(6).double())


def test_a_constant_added_to_a_level_changes_nothing():
    tree = tree_of("all-paths")
    logits = torch.randn(3, len(tree.classes), dtype=torch.float64)
    shifted = logits + torch.tensor([5.0, -3.0, 7.0])[torch.tensor(tree.levels).long()]
    torch.testing.assert_close(DownTheTree(tree)(shifted), DownTheTree(tree)(logits))


def test_leaves_of_different_levels_are_compared():
    """The cat's logit is the largest of all; but it is the only animal, and this is a plant."""
    tree = tree_of("first")
    logits = torch.zeros(1, len(tree.classes))
    logits[0, tree.class_index["cat"]] = 4.0
    logits[0, tree.class_index["plant"]] = 3.0
    logits[0, tree.class_index["moss"]] = 2.0
    metric = LeavesDownTheTree(tree)
    metric.update(logits.repeat(3, 1), torch.tensor([tree.class_index["moss"]] * 3), torch.arange(3) < 2)
    numbers = metric.compute()
    assert (numbers["leaf_top1_down_the_tree"], numbers["leaf_tree_distance_down_the_tree"]) == (1.0, 0.0)
    assert numbers["leaf_tree_distance_of_errors_down_the_tree"] is None


def read(tree, logits, levels=None, top=2):
    recipe = dataclasses.replace(semantic_softmax(), levels=levels)
    saved = type("Saved", (), {"tree": tree, "class_names": list(tree.classes), "recipe": recipe})
    return _Reader(saved, top, down_the_tree=True)("image", torch.tensor(logits, dtype=torch.float64))


def test_the_path_is_that_of_the_best_leaf():
    tree = tree_of("first")
    logits = np.zeros(len(tree.classes))
    # tree is a little more probable than moss, but it has two leaves to share with.
    logits[tree.class_index["plant"]], logits[tree.class_index["tree"]] = 3.0, 0.1
    found = read(tree, logits)
    assert [guess.name for guess in found.path] == ["plant", "moss"]
    probabilities = [guess.probability for guess in found.path]
    plant = math.exp(3) / (math.exp(3) + 2)
    assert probabilities == pytest.approx([plant, plant / (1 + math.exp(0.1))])
    assert [guess.name for guess in found.best[0]] == ["plant", "animal"]
    assert [guess.name for guess in found.best[1]] == ["tree", "moss"]
    # With one level, the classes on it are the leaves.
    assert [guess.name for guess in read(tree, logits, levels=1).path] == ["plant"]


def test_of_several_parents_the_path_takes_the_more_probable():
    tree = tree_of("all-paths")
    for parent, expected in (("landmark", ["landmark", "oak"]), ("plant", ["plant", "tree", "oak"])):
        logits = np.zeros(len(tree.classes))
        logits[tree.class_index[parent]], logits[tree.class_index["oak"]] = 6.0, 6.0
        logits[tree.class_index["tree"]] = 3.0
        logits[tree.class_index["tower"]] = -3.0
        assert [guess.name for guess in read(tree, logits).path] == expected


@pytest.fixture(scope="module")
def checkpoints(shards, tmp_path_factory):
    found = {}
    for recipe in (semantic_softmax(), multi_label_bce()):
        recipe = dataclasses.replace(recipe, epochs=6, global_batch=8, image_size=32, lr=1e-2)
        out = tmp_path_factory.mktemp(recipe.name)
        result = train(recipe, str(shards / "train"), model="test_resnet", out=out, log=lambda line: None)
        found[recipe.name] = result.checkpoint
    return found


def test_predict_and_evaluate_agree_on_the_leaves(checkpoints, shards, capsys):
    checkpoint, val = checkpoints["semantic-softmax"], str(shards / "val")
    numbers = evaluate(checkpoint, val)
    predictions = list(Predictor(checkpoint, down_the_tree=True).data_set(val))
    right = sum(prediction.path[-1].name == prediction.image.split("_")[0] for prediction in predictions)
    assert right / len(predictions) == numbers["leaf_top1_down_the_tree"] > 0.5
    assert numbers["leaf_top5_down_the_tree"] == 1.0  # four leaves
    for prediction in predictions:
        above, leaf = prediction.path
        assert above.probability > leaf.probability
        assert sum(guess.probability for guess in prediction.best[0]) == pytest.approx(1)
    assert main(["predict", str(checkpoint), val, "--down-the-tree", "--json", "--device", "cpu"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in printed] == [p.to_json()["path"] for p in predictions]
    assert main(["evaluate", str(checkpoint), val, "--device", "cpu"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["leaf_top1_down_the_tree"].endswith("%")
    assert lines["leaf_tree_distance_down_the_tree"].endswith(" edges")


def test_other_models_are_not_read_down_the_tree(checkpoints, shards, capsys):
    with pytest.raises(UsageError, match=r"one softmax per level .* found one of the recipe 'multi-label'"):
        Predictor(checkpoints["multi-label"], down_the_tree=True)
    arguments = [str(checkpoints["multi-label"]), str(shards / "val"), "--down-the-tree"]
    assert main(["predict", *arguments, "--device", "cpu"]) == 2
    assert "Run without --down-the-tree" in capsys.readouterr().err
