"""Tables, YAML and wordnet.is_a.txt, as people write them and as attackers do."""

import importlib.util
import re
from pathlib import Path

import fsspec
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from softshard.shards import tree_sources
from softshard.shards.choose_classes import groups_of_file
from softshard.shards.classes import load_class_list
from softshard.shards.errors import DataError, UsageError
from softshard.shards.relations import MAX_CYCLES, find_cycles
from softshard.shards.tree import LabelTree
from softshard.shards.tree_sources import read_pairs, read_wordnet_list, read_yaml

ROOT = Path(__file__).parents[2]
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's wheel")


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def yaml_file(request, tmp_path, monkeypatch):
    """Writes a YAML file; read with libyaml's parser and with the one in Python."""
    monkeypatch.setattr(tree_sources, "_YAML_LOADER", getattr(yaml, request.param))

    def write(text):
        path = tmp_path / "tree.yaml"
        path.write_text(text, "utf-8")
        return str(path)

    return write


# ---- YAML


def test_yaml_of_maps_lists_and_names(yaml_file):
    text = """
    animal:
      bird: [swan, goose]
      fish:            # a leaf
      insect: ~
    plant:
    - tree: oak
    - moss
    fungus: {}
    """
    assert read_yaml(yaml_file(text)) == [
        ("animal", ""),
        ("bird", "animal"),
        ("swan", "bird"),
        ("goose", "bird"),
        ("fish", "animal"),
        ("insect", "animal"),
        ("plant", ""),
        ("tree", "plant"),
        ("oak", "tree"),
        ("moss", "plant"),
        ("fungus", ""),
    ]


def test_yaml_names_are_what_stands_there(yaml_file):
    # YAML 1.1 would make False, 1.0, a date, None and octal 8 of these.
    pairs = read_yaml(yaml_file("root: [no, 1.0, 2020-01-01, 'null', 010, \"schön, weiß\", a: b]"))
    assert [child for child, _ in pairs[1:]] == [
        "no",
        "1.0",
        "2020-01-01",
        "null",
        "010",
        "schön, weiß",
        "a",
        "b",
    ]


def test_a_list_of_yaml_is_a_forest_and_an_empty_file_no_tree(yaml_file):
    assert read_yaml(yaml_file("- a: [b]\n- c")) == [("a", ""), ("b", "a"), ("c", "")]
    assert read_yaml(yaml_file("# nothing\n")) == []
    with pytest.raises(UsageError, match="expected classes, found none"):
        LabelTree.from_file(yaml_file("\n"))


def test_the_yaml_of_the_readme_is_a_tree(yaml_file):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "shards" / "README.md").read_text("utf-8"), re.DOTALL)
    tree = LabelTree.from_file(yaml_file(text))
    assert tree.level_sizes == (2, 4, 4, 2)
    assert tree.classes[-3:] == ("mammal", "cat", "thing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [b]\nc: *x\n", r"line 2: expected a name, found the alias \*x; aliases are not followed"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "line 1: expected names, found the tag 'tag:yaml.org,2002:python",
        ),
        ("a: !mine b", "expected names, found the tag '!mine'"),
        ("a: b\n---\nc: d", "line 2: expected one document, found a second one"),
        ("? [a, b]\n: c", "expected a name before a colon, found a map or a list"),
        ("a: [b", "expected YAML of nested names; while parsing"),
        ("a: \x01", "expected YAML of nested names"),
        ("[" * 5000, "line 1: expected maps and lists nested at most 200 deep, found more"),
    ],
)
def test_what_is_no_yaml_of_names_is_refused(yaml_file, text, message):
    path = yaml_file(text)
    with pytest.raises(DataError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(path)


def test_every_wrong_name_of_yaml_is_named_with_its_line(yaml_file):
    path = yaml_file("a:\n- b\n- null\n- b\n~: d\na: e\n")
    with pytest.raises(DataError) as caught:
        read_yaml(path)
    assert str(caught.value).splitlines() == [
        f"{path}: line 3: expected a name, found 'null'; quote it where it is one",
        f"{path}: line 4: 'b' stands below 'a' on line 2 already",
        f"{path}: line 5: expected a name, found '~'; quote it where it is one",
        f"{path}: line 6: 'a' stands on line 1 already",
    ]


def test_an_alias_bomb_costs_nothing(yaml_file):
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    with pytest.raises(DataError, match="found the alias"):
        read_yaml(yaml_file(bomb))


def test_yaml_that_is_too_large_is_refused(yaml_file, monkeypatch):
    monkeypatch.setattr(tree_sources, "MAX_YAML_BYTES", 10)
    with pytest.raises(DataError, match="expected at most 10 bytes, found more"):
        read_yaml(yaml_file("animal: [bird]"))


@given(
    st.recursive(st.none(), lambda children: st.dictionaries(st.text(), children, max_size=4), max_leaves=20)
)
def test_yaml_as_pyyaml_writes_it_reads_back(tmp_path_factory, tree):
    """Nested dictionaries are their own oracle: walked here, written by PyYAML, read by us."""
    expected, wrong = [], False

    def walk(children, parent):
        nonlocal wrong
        for name, below in (children or {}).items():
            wrong |= not name.strip() or name != name.strip()
            expected.append((name, parent))
            walk(below, name)

    walk(tree, "")
    path = tmp_path_factory.mktemp("yaml") / "tree.yaml"
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    assume(yaml.safe_load(text) == tree)  # PyYAML does not read every line break back that it writes
    path.write_text(text, "utf-8", newline="")
    if wrong or len(set(expected)) < len(expected):
        return
    assert read_yaml(str(path)) == expected


# ---- Tables


def test_a_table_may_have_tabs_and_the_parent_first(tmp_path):
    expected = [("bird, small", "animal"), ("animal", "")]
    tsv = tmp_path / "t.TSV"
    tsv.write_text("parent\tchild\nanimal\tbird, small\n\tanimal\n")
    assert read_pairs(str(tsv)) == expected
    table = tmp_path / "t.csv"
    table.write_text('Child,Parent\n"bird, small",animal\nanimal,\n')
    assert read_pairs(str(table)) == expected


def test_a_file_with_another_ending_is_a_wrong_call(tmp_path):
    (tmp_path / "tree.xml").touch()
    with pytest.raises(UsageError, match=r"tree\.xml: expected relations in a \.csv"):
        read_pairs(str(tmp_path / "tree.xml"))


def test_unknown_names_cycles_and_second_parents_are_reported_together(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("a: {b: {c: }}\nc: {a: }\nd: [e]\nf: [e]\n")
    with pytest.raises(DataError) as caught:
        LabelTree.from_file(path, ["e", "x"])
    assert [line.removeprefix(f"{path}: ").split(";")[0] for line in str(caught.value).splitlines()] == [
        "'a' is declared a root and has the parent 'c'",
        "'c' is declared a root and has the parent 'b'",
        "'e' has two parents, 'd' and 'f'",
        "class 'x': expected in the table, found nowhere",
        "'a' -> 'c' -> 'b' -> 'a' is a cycle",
    ]


@pytest.mark.parametrize(
    ("rule", "parent"),
    [("first", "b"), ("last", "d"), ("shortest", "d"), ("longest", "b"), ("all-paths", "b")],
)
def test_a_rule_chooses_among_the_rows_of_a_table(rule, parent):
    pairs = [("x", "b"), ("x", "d"), ("b", "a")]
    tree = LabelTree.from_table(None, pairs, parents=rule)
    assert tree.classes[tree.parents[0]] == parent
    assert (tree.rule.parents, tree.rule.inner) == (rule, "all")
    with pytest.raises(
        DataError, match=r"'x' has two parents, 'b' and 'd'; keep one of the rows, or choose a rule"
    ):
        LabelTree.from_table(None, pairs)
    with pytest.raises(UsageError, match="parents: expected one of first, last, longest"):
        LabelTree.from_table(None, pairs, parents="published")


def test_a_deep_table_needs_no_deep_stack():
    pairs = [(f"c{i + 1}", f"c{i}") for i in range(1900)]
    assert LabelTree.from_table(None, pairs, parents="longest").num_levels == 1901


def test_no_password_of_a_url_is_told_or_kept():
    url = "memory://ann:secret@h/own.csv?sig=1"
    store = fsspec.filesystem("memory")
    store.pipe_file(url, b"child,parent\ncat,animal\n")
    assert LabelTree.from_file(url).rule.source == "memory://h/own.csv"
    store.pipe_file(url, b"cat,animal,x\n")
    with pytest.raises(DataError, match=r"^memory://h/own\.csv: line 1: expected `child,parent`"):
        LabelTree.from_file(url)
    with pytest.raises(DataError, match=r"^memory://h/own\.csv: line 1: "):
        groups_of_file(url, ("cat",))


def test_cycles_of_a_graph_are_found_until_there_are_too_many():
    graph = {"a": ["b", "c"], "b": ["a"], "c": ["c", "b"], "d": ["a"]}
    assert find_cycles(graph) == [["a", "b", "a"], ["c", "c"]]
    assert len(find_cycles({i: [i] for i in range(2 * MAX_CYCLES)})) == MAX_CYCLES
    with pytest.raises(DataError, match="only 100 cycles are named"):
        LabelTree.from_table(None, [(str(i), str(i)) for i in range(200)])


def test_a_long_cycle_is_cut_short():
    with pytest.raises(DataError, match=r"'c7' -> 'c8' -> \(\d+ more\) -> 'c\d+' is a cycle"):
        LabelTree.from_table(None, [(f"c{i}", f"c{(i + 1) % 500}") for i in range(500)])


# ---- wordnet.is_a.txt


@pytest.mark.shared
@needs_timm
@pytest.mark.parametrize("class_list", ["imagenet-21k-p-fall11", "imagenet-21k-p-winter21"])
def test_the_published_tree_from_the_list_itself(class_list, is_a):
    classes = load_class_list(class_list)
    packaged = LabelTree.from_wordnet(classes, parents="published")
    for rule in ("published", "last"):
        tree = LabelTree.from_wordnet(classes, parents=rule, relations_file=is_a)
        assert tree.fingerprint == packaged.fingerprint
        assert tree.rule.source == str(is_a)
    assert (
        LabelTree.from_wordnet(classes, parents="first", relations_file=is_a).fingerprint
        != packaged.fingerprint
    )


@pytest.mark.shared
@needs_timm
def test_inner_nodes_come_from_the_list_too(is_a):
    classes = load_class_list("imagenet-1k")
    listed = LabelTree.from_wordnet(classes, parents="published", inner="branching", relations_file=is_a)
    packaged = LabelTree.from_wordnet(classes, parents="published", inner="branching")
    assert listed.fingerprint == packaged.fingerprint
    assert listed.num_levels > 10


def test_the_last_of_equal_lines_counts(tmp_path):
    path = tmp_path / "is_a.txt"
    path.write_text("n02083346 n02084071\nn01317541 n02084071\nn02083346 n02084071\n\n")
    assert read_wordnet_list(str(path))["n02084071"] == ["n01317541", "n02083346"]


def test_everything_wrong_with_a_list_is_said_at_once(tmp_path):
    path = tmp_path / "is_a.txt"
    path.write_text("n02083346 n02084071\nn02084071 n02083346\n")
    with pytest.raises(DataError) as caught:
        LabelTree.from_wordnet(["blorp", "n02084071", "n00000001"], relations_file=path)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "class 'blorp'",
        "class 'n00000001'",
        str(path),
    ]
    path.write_text("n02083346 n02084071\nanimal dog\nn1 n2 n3\n")
    with pytest.raises(DataError) as caught:
        LabelTree.from_wordnet(["n02084071"], relations_file=path)
    assert str(caught.value).splitlines() == [
        f"{path}: line 2: expected two wnids, `parent child`, found 'animal dog'",
        f"{path}: line 3: expected two wnids, `parent child`, found 'n1 n2 n3'",
        f"{path}: a .txt of relations is ImageNet's wordnet.is_a.txt; give a table of your own as .csv",
    ]
