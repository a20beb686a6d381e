"""The file of a subset: what is written is read again, edits by hand are fine, nonsense is refused."""

import json

import numpy as np
import pytest

from softshard.shards import DataError, LabelTree, UsageError
from softshard.shards.subset_file import ClassGroup, SubsetFile, is_subset_file

NAMES = ("bird", "cat", "dog", "oak")
GROUPS = (ClassGroup("pet", ("dog", "cat"), 2.5), ClassGroup.single("oak"))
SOURCE = {"name": "zoo", "classes_sha256": "0" * 64, "fingerprint": None}


def make(**changes):
    parts = {"groups": GROUPS, "class_method": {"name": "file", "seed": 3}, "class_source": SOURCE}
    return SubsetFile(**{**parts, **changes})


def test_what_was_saved_is_loaded_again(tmp_path):
    images = {"image_method": {"name": "random", "per_class": 1}, "image_source": {"name": "train"}}
    for subset in (make(notes=("a note",)), make(keys=("a_1", "b_2"), **images)):
        subset.save(tmp_path / "s.json")
        again = SubsetFile.load(tmp_path / "s.json")
        assert vars(again) | {"fingerprint": again.fingerprint} == vars(subset) | {
            "fingerprint": subset.fingerprint
        }
        assert is_subset_file(tmp_path / "s.json")


def test_the_file_has_a_line_for_each_class_and_key_and_titles_for_wnids(tmp_path):
    groups = (ClassGroup.single("n01440764"), ClassGroup("ab", ("n01443537", "n01484850")))
    make(groups=groups, keys=("a_1", "b_2"), image_method={}, image_source={}).save(tmp_path / "s.json")
    lines = (tmp_path / "s.json").read_text().splitlines()
    assert '   {"name": "n01440764", "title": "tench", "members": ["n01440764"]},' in lines
    assert '   {"name": "ab", "members": ["n01443537", "n01484850"]}' in lines
    assert '   "a_1",' in lines


def test_classes_become_their_groups_and_others_are_left_out():
    relabelling = make().relabelling(NAMES)
    assert relabelling.class_map.tolist() == [-1, 0, 0, 1]
    assert relabelling.class_names == ("pet", "oak")
    assert relabelling.dropped == ("bird",)
    assert relabelling.merged == (("cat", "pet"), ("dog", "pet"))
    assert relabelling.tree is None


def test_the_tree_of_a_subset_is_over_its_classes():
    pairs = [("cat", "pet"), ("dog", "pet"), ("bird", "animal"), ("pet", "animal"), ("oak", "plant")]
    tree = LabelTree.from_table(NAMES, pairs)
    groups = (ClassGroup("animal", ("bird",)), *GROUPS)
    found = make(groups=groups).relabelling(tree.classes, tree).tree
    assert found.classes == ("animal", "pet", "oak")
    assert found.parents.tolist() == [-1, 0, -1]
    np.testing.assert_array_equal(found.vectors(), [[0, -1], [0, 0], [1, -1]])


def test_a_subset_of_another_class_list_is_refused():
    with pytest.raises(
        DataError, match=r"found 1 that it does not have: 'oak'; it was chosen from 'zoo', another class list"
    ):
        make().relabelling(NAMES[:3])


def test_the_fingerprint_is_of_what_is_chosen_and_not_how():
    one = make(keys=("a", "b"), class_method={}, notes=("x",))
    assert one.fingerprint == make(keys=("b", "a")).fingerprint
    assert one.fingerprint != make().fingerprint == one.without_keys().fingerprint
    assert make().fingerprint != make(groups=GROUPS[::-1]).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ()}, r"expected classes, found none"),
        ({"groups": (ClassGroup("a", ()),)}, r"group 'a': expected members, found none"),
        ({"groups": (*GROUPS, GROUPS[1])}, r"distinct names of groups, found twice: 'oak'\n.*found twice: 'oak'"),
        ({"groups": (*GROUPS, ClassGroup("wild", ("dog",)))}, r"classes in one group each, found twice: 'dog'"),
        ({"groups": (ClassGroup("a\nb", ("a",)),)}, r"expected names of one line"),
        ({"keys": ()}, r"expected keys of images, found none"),
        ({"keys": ("a", "b", "a")}, r"expected every key once, found 1 more often: 'a'"),
    ],
)  # fmt: skip
def test_a_subset_that_cannot_be_is_refused(changes, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        make(**changes)


def spoil(content, path, value):
    *outer, last = path
    for part in outer:
        content = content[part]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "other", r"expected a file of `softshard subset`"),
        (["version"], [2, 0], r"expected version 1.x, found 2.*pip install -U"),
        (["version"], "1", r"expected a version"),
        (["classes"], [], r"expected a map 'classes' with a list 'groups'"),
        (["classes", "method"], 3, r"expected a map 'method', found 3"),
        (["classes", "groups", 0], {"name": 1}, r"group 0: expected a name and a list of members"),
        (["classes", "groups", 1, "members"], "oak", r"group 1: expected a name and a list"),
        (["classes", "groups", 1, "members"], ["dog"], r"s\.json: .*found twice: 'dog'"),
        (["images"], {"keys": "a"}, r"images: expected null, or method"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, path, value, message):
    content = make().to_json()
    spoil(content, path, value)
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"(?s){message}"):
        SubsetFile.load(tmp_path / "s.json")


def test_a_file_that_is_no_json_and_one_that_is_yaml_say_what_to_do(tmp_path):
    (tmp_path / "s.json").write_text("pet: [cat]")
    with pytest.raises(DataError, match="expected a subset in JSON"):
        SubsetFile.load(tmp_path / "s.json")
    with pytest.raises(UsageError, match=r"softshard subset classes DATASET --method file --from .*s\.yaml"):
        SubsetFile.load(tmp_path / "s.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        SubsetFile.load(tmp_path / "none.json")
    assert not is_subset_file(tmp_path / "none.json")


def test_a_file_edited_by_hand_is_still_one(tmp_path):
    make().save(tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text().replace('"dog", "cat"', '"dog", "cat", "bird"')
    (tmp_path / "s.json").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    assert SubsetFile.load(tmp_path / "s.json").class_of == {
        "dog": "pet", "cat": "pet", "bird": "pet", "oak": "oak",
    }  # fmt: skip
