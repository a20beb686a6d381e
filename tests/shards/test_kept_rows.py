"""Rows that lie in a file give the classes that rows in memory give."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards import ImageRecipe, Manifest, PackOptions, pack
from softshard.shards.kept_rows import KeptRows

ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.text("xyé/", min_size=1, max_size=4), st.text(max_size=5)),
    max_size=20,
)


def classes(rows, limit):
    kept, problems = KeptRows(limit), []
    for group, path, title in rows:
        kept.add(group, path, {"title": title} if title else {})
    groups = sorted(kept.groups)
    folders = [kept.class_folder(group.upper(), [group], "list", problems) for group in groups]
    assert not kept.groups
    return folders, problems


@given(ROWS, st.integers(0, 200))
def test_classes_are_the_same_wherever_their_rows_lie(rows, limit):
    in_memory, problems = classes(rows, 2**30)
    in_file, same_problems = classes(rows, limit)
    assert same_problems == problems
    for folder, expected in zip(in_file, in_memory, strict=True):
        assert (folder.name, list(folder.files)) == (expected.name, list(expected.files))
        assert folder.metadata == expected.metadata
        if expected.metadata is not None:
            assert list(folder.metadata) == list(expected.metadata)
            assert [folder.metadata[i] for i in range(len(folder.files))] == list(expected.metadata)


def test_several_groups_become_one_class():
    kept, problems = KeptRows(0), []
    kept.add("0", "a.jpg", {})
    kept.add("cat", "a.jpg", {"title": "t"})
    folder = kept.class_folder("cat", ["0", "cat"], "list", problems)
    assert list(folder.files) == ["a.jpg", "a.jpg"]
    assert problems == ["list: 'a.jpg': expected once in class 'cat', found it again"]
    assert folder.metadata is not None
    assert folder.metadata.in_file


def test_a_list_whose_rows_lie_in_a_file_gives_the_same_shards(tmp_path, source_maker, monkeypatch):
    source_maker(tmp_path / "web", {"cat": 3, "dog": 3})
    rows = [
        {"path": f"{label}/{label}_{i}.jpg", "label": label, "title": f"{label} {i}"}
        for i in range(3)
        for label in ("cat", "dog")
    ]
    file = tmp_path / "web" / "web.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = PackOptions(image=ImageRecipe(resize="none"), shard_samples=4)
    pack(file, tmp_path / "memory", options, workers=1)
    monkeypatch.setattr(KeptRows.__init__, "__defaults__", (50,))
    pack(file, tmp_path / "file", options, workers=2)
    in_memory, in_file = (Manifest.load(tmp_path / name / "train") for name in ("memory", "file"))
    assert in_file.shards == in_memory.shards


@pytest.mark.parametrize("limit", [0, 10_000])
def test_no_file_is_made_below_the_limit(limit):
    kept = KeptRows(limit)
    kept.add("cat", "a.jpg", {"title": "t"})
    metadata = kept.class_folder("cat", ["cat"], "list", []).metadata
    assert metadata is not None
    assert metadata.in_file == (limit == 0)
