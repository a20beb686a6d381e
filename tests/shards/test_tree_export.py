"""What is written for other programs, read back by their rules."""

import importlib.util
import json
import re

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards.classes import load_class_list
from softshard.shards.errors import UsageError
from softshard.shards.tree import LabelTree
from softshard.shards.tree_export import EXPORTERS, to_class_list, to_csv, to_dot, to_original, to_yaml

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's wheel")

PAIRS = [
    ("swan", "bird"),
    ("bird", "animal"),
    ("no", "animal"),
    ('a "b", c', ""),
    ("12", 'a "b", c'),
    ("ö\\n", "12"),
]
# The swan is a pet too, the pet nothing else.
SEVERAL = [*PAIRS, ("swan", "pet"), ("cygnet", "swan")]


def rebuilt(tree, tmp_path, suffix, rule):
    path = tmp_path / f"tree.{suffix}"
    path.write_text(EXPORTERS[suffix](tree), "utf-8", newline="")
    return LabelTree.from_file(path, tree.classes, parents=rule)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "yaml"])
@pytest.mark.parametrize(("pairs", "rule"), [(PAIRS, None), (SEVERAL, "all-paths")])
def test_tables_and_yaml_read_back(tmp_path, suffix, pairs, rule):
    tree = LabelTree.from_table(None, pairs, parents=rule)
    assert bool(len(tree.other_parents)) == (rule == "all-paths")
    assert rebuilt(tree, tmp_path, suffix, rule).fingerprint == tree.fingerprint


@needs_timm
@pytest.mark.parametrize("suffix", ["csv", "yaml"])
@pytest.mark.parametrize("rule", ["published", "all-paths"])
def test_the_tree_of_imagenet_21k_p_reads_back(tmp_path, suffix, rule):
    tree = LabelTree.from_wordnet(load_class_list("imagenet-21k-p-fall11"), parents=rule)
    again = rebuilt(tree, tmp_path, suffix, "all-paths" if rule == "all-paths" else None)
    assert again.fingerprint == tree.fingerprint
    assert again.names == tree.names


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)
    .map(str.strip)
    .filter(bool)
)
def test_any_name_reads_back(tmp_path_factory, name):
    tree = LabelTree.from_table(None, [("under " + name, name), ("root", "")])
    folder = tmp_path_factory.mktemp("export")
    for suffix in ("csv", "tsv", "yaml"):
        assert rebuilt(tree, folder, suffix, None).fingerprint == tree.fingerprint
    # Other readers of YAML see text too.
    assert set(yaml.safe_load(to_yaml(tree))) == {name, "root"}


def test_a_class_list_is_a_name_a_line():
    assert to_class_list(LabelTree.from_table(["bird", "swan"], PAIRS)) == "bird\nswan\nanimal\n"


def test_the_rows_of_a_table():
    assert to_csv(LabelTree.from_table(["no", "swan"], PAIRS)) == (
        "child,parent\nno,animal\nswan,bird\nbird,animal\nanimal,\n"
    )


def test_a_graph_has_all_classes_and_edges():
    tree = LabelTree.from_table(None, SEVERAL, parents="all-paths")
    text = to_dot(tree)
    labels = dict(re.findall(r'^  (\d+) \[label="((?:[^"\\]|\\.)*)"\];$', text, re.MULTILINE))
    assert [re.sub(r"\\(.)", r"\1", labels[str(i)]) for i in range(len(tree.classes))] == list(tree.classes)
    edges = re.findall(r"^  (\d+) -> (\d+)( \[style=dashed\])?;$", text, re.MULTILINE)
    expected = {
        (p, c, place > 0) for c, above in enumerate(tree.all_parents) for place, p in enumerate(above)
    }
    assert {(int(p), int(c), bool(dashed)) for p, c, dashed in edges} == expected
    assert text.count("dashed") == 1


@needs_timm
def test_the_original_projects_code_makes_the_same_vectors_of_its_file():
    tree = LabelTree.from_wordnet(load_class_list("imagenet-21k-p-fall11"), parents="published")
    content = json.loads(to_original(tree))
    chains = content["class_tree_list"]
    # As its loss does: the level of a class is the length of its chain, its target the place in its level.
    depth = np.array([len(chain) - 1 for chain in chains])
    members = [np.flatnonzero(depth == level) for level in range(depth.max() + 1)]
    place = {int(c): i for ids in members for i, c in enumerate(ids)}
    for node, chain in enumerate(chains):
        targets = [-1] * len(members)
        for step, ancestor in enumerate(chain):
            targets[len(chain) - step - 1] = place[ancestor]
        assert targets == tree.vectors()[node].tolist()
    assert content["class_list"] == list(tree.classes)
    assert content["child_2_parent"]["n01858441"] == "n01844917"  # swan, aquatic bird
    assert content["class_description"]["n01858441"] == "swan"


def test_the_original_projects_file_holds_one_parent():
    tree = LabelTree.from_table(None, SEVERAL, parents="all-paths")
    with pytest.raises(UsageError, match="expected one parent for each class, found several"):
        to_original(tree)
