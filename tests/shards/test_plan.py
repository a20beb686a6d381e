import hashlib
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards import DataError, UsageError
from softshard.shards.listing import ClassFolder, Listing
from softshard.shards.plan import make_plan
from softshard.shards.schema import KEY_PATTERN


def listing(classes, validation=()):
    """A listing of {class: file names or their number}."""
    folders = []
    for name, files in sorted(classes.items()):
        files = [f"{i}.jpg" for i in range(files)] if isinstance(files, int) else files
        folders.append(ClassFolder(name, name, tuple(sorted(files))))
    return Listing(Path("src"), tuple(folders), tuple(validation), ())


def split(plan, name):
    return next(split for split in plan.splits if split.name == name)


def keys(plan):
    return {path: key for split in plan.splits for path, key in zip(split.paths, split.keys, strict=True)}


# ---- Classes


def test_folders_give_the_classes_in_lexical_order():
    plan = make_plan(listing({"b": 2, "a": 3}))
    assert plan.class_names == ("a", "b")
    assert sorted(zip(plan.splits[0].paths, plan.splits[0].classes.tolist(), strict=True)) == [
        ("a/0.jpg", 0), ("a/1.jpg", 0), ("a/2.jpg", 0), ("b/0.jpg", 1), ("b/1.jpg", 1),
    ]  # fmt: skip


def test_a_class_list_fixes_the_indices_and_drops_other_folders():
    plan = make_plan(listing({"a": 1, "b": 1, "x": 4}), class_names=["b", "z", "a"])
    assert plan.class_names == ("b", "z", "a")
    assert dict(zip(plan.splits[0].paths, plan.splits[0].classes.tolist(), strict=True)) == {
        "a/0.jpg": 2,
        "b/0.jpg": 0,
    }
    assert plan.dropped == (("x", 4),)
    assert plan.without_images == ("z",)


def test_small_classes_are_dropped_by_their_count_before_the_split():
    plan = make_plan(listing({"a": 5, "b": 4, "c": 0}), min_images=5, val_per_class=3)
    assert plan.class_names == ("a",)
    assert plan.dropped == (("b", 4), ("c", 0))
    assert [len(split) for split in plan.splits] == [2, 3]


def test_no_class_left_is_an_error_that_names_the_folders():
    with pytest.raises(DataError) as caught:
        make_plan(listing({"a": 1, "b": 2}), min_images=3)
    assert str(caught.value) == (
        "src: expected a class folder with at least 3 images, found none among 2: 'a', 'b'"
    )
    with pytest.raises(DataError, match="that is in the class list, found none among 1: 'a'"):
        make_plan(listing({"a": 1}), class_names=["dog"])


def test_a_class_without_training_images_is_an_error_that_says_what_to_do():
    with pytest.raises(
        DataError,
        match=r"expected more than 2 images in every class.*found 1 class with fewer: 'b'.*--min-images 3",
    ):
        make_plan(listing({"a": 3, "b": 2}), val_per_class=2)


@pytest.mark.parametrize("options", [{"val_split": "random"}, {"min_images": -1}, {"val_per_class": -1}])
def test_a_wrong_option_is_a_wrong_call(options):
    with pytest.raises(UsageError, match="expected"):
        make_plan(listing({"a": 3}), **options)


# ---- Split


def test_the_lexical_split_takes_the_first_files():
    plan = make_plan(
        listing({"a": ["b.jpg", "a.jpg", "10.jpg", "2.jpg"]}), val_per_class=2, val_split="lexical"
    )
    assert sorted(split(plan, "val").paths) == ["a/10.jpg", "a/2.jpg"]


def test_the_hash_split_takes_the_smallest_sha_256_of_class_and_file():
    plan = make_plan(listing({"a": 20}), val_per_class=3)
    ranked = sorted(
        (f"a/{i}.jpg" for i in range(20)), key=lambda path: hashlib.sha256(path.encode()).hexdigest()
    )
    assert set(split(plan, "val").paths) == set(ranked[:3])


@given(st.sets(st.integers(0, 99), min_size=5, max_size=30), st.integers(100, 200))
def test_a_new_file_moves_at_most_one_sample_of_the_hash_split(numbers, new):
    files = [f"{i}.jpg" for i in numbers]
    before = set(split(make_plan(listing({"a": files}), val_per_class=4), "val").paths)
    after = set(split(make_plan(listing({"a": [*files, f"{new}.jpg"]}), val_per_class=4), "val").paths)
    assert len(before - after) <= 1
    assert after - before <= {f"a/{new}.jpg"}


def test_splits_are_disjoint_and_complete():
    plan = make_plan(listing({"a": 9, "b": 7}), val_per_class=2)
    train, val = set(split(plan, "train").paths), set(split(plan, "val").paths)
    assert not train & val
    assert len(train | val) == plan.num_samples == 16
    assert sorted(split(plan, "val").classes.tolist()) == [0, 0, 1, 1]


def test_a_source_that_is_split_already_keeps_its_split():
    validation = [ClassFolder("a", "val/a", ("9.jpg",)), ClassFolder("x", "val/x", ("1.jpg",))]
    plan = make_plan(listing({"a": 2, "b": 1}, validation))
    assert split(plan, "val").paths == ("val/a/9.jpg",)
    assert split(plan, "val").classes.tolist() == [0]
    assert plan.dropped == (("val/x", 1),)
    with pytest.raises(UsageError, match="expected no --val-per-class"):
        make_plan(listing({"a": 2}, validation), val_per_class=1)


# ---- Order and shards


def test_the_order_depends_on_the_seed_alone():
    one, same, other = (make_plan(listing({"a": 30, "b": 30}), seed=seed) for seed in (1, 1, 2))
    assert one.splits[0].paths == same.splits[0].paths != other.splits[0].paths
    assert sorted(one.splits[0].paths) == sorted(other.splits[0].paths)
    assert one.sha256 == same.sha256 != other.sha256


def test_classes_are_mixed():
    classes = make_plan(listing({"a": 200, "b": 200})).splits[0].classes
    assert 150 < np.count_nonzero(np.diff(classes)) < 250


def test_the_fingerprint_is_of_names_order_and_options():
    base = make_plan(listing({"a": 3, "b": 3}), options={"size": 224}).sha256
    others = [
        make_plan(listing({"a": 3, "b": 4}), options={"size": 224}).sha256,
        make_plan(listing({"a": 3, "c": 3}), options={"size": 224}).sha256,
        make_plan(listing({"a": 3, "b": 3}), options={"size": 225}).sha256,
        make_plan(listing({"a": 3, "b": 3}), options={"size": 224}, class_names=["b", "a"]).sha256,
        make_plan(listing({"a": 3, "b": 3}), options={"size": 224}, val_per_class=1).sha256,
    ]
    assert len({base, *others}) == 6
    assert make_plan(listing({"b": 3, "a": 3}), options={"size": 224}).sha256 == base


@given(st.integers(1, 500), st.integers(1, 80))
def test_shards_are_near_equal_runs_that_cover_all_samples(num, samples_per_shard):
    bounds = make_plan(listing({"a": num})).splits[0].shard_bounds(samples_per_shard)
    sizes = [stop - start for start, stop in bounds]
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert sum(sizes) == num
    assert max(sizes) <= samples_per_shard
    assert max(sizes) - min(sizes) <= 1


def test_files_take_few_bytes_each():
    """So that 14 million take a few hundred megabytes; benchmarks/plan_scale.py measures those."""
    num_files, num_classes = 200_000, 4_368
    tracemalloc.start()
    folders = []
    for i in range(num_classes):
        wnid = f"n{1_440_764 + 537 * i:08d}"
        count = num_files * (i + 1) // num_classes - num_files * i // num_classes
        folders.append(ClassFolder(wnid, wnid, sorted(f"{wnid}_{37 * j % 1009}.JPEG" for j in range(count))))
    source = Listing("src", tuple(folders))
    listed, _ = tracemalloc.get_traced_memory()
    plan = make_plan(source, val_per_class=5)
    planned, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    per_class = 1500  # a folder's objects
    assert (listed - num_classes * per_class) / num_files < 16
    assert (planned - listed) / num_files < 8
    assert (peak - num_classes * per_class) / num_files < 100
    assert [len(split) for split in plan.splits] == [num_files - 5 * num_classes, 5 * num_classes]
    sample = plan.splits[0].samples(100_000, 100_001)[0]
    assert sample.path == f"{plan.class_names[sample.class_index]}/{sample.key}.JPEG"


# ---- Keys


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("n01440764/n01440764_42.JPEG", r"n01440764_42"),  # ImageNet's own name
        ("dog/42.jpg", r"dog_42"),
        ("dog/n0_42.jpg", r"dog_n0_42"),
        ("tabby cat/42.jpg", r"tabby-cat_42-[0-9a-f]{8}"),
        ("dog/4.2.jpg", r"dog_4-2-[0-9a-f]{8}"),
        ("dog/sub/42.jpg", r"dog_sub-42-[0-9a-f]{8}"),
        ("hund/größe.jpg", r"hund_gr--e-[0-9a-f]{8}"),
        ("dog/caf\udce9.jpg", r"dog_caf--[0-9a-f]{8}"),
        (f"dog/{'x' * 76}.jpg", f"dog_{'x' * 76}"),
        (f"dog/{'x' * 77}.jpg", f"dog_{'x' * 76}-[0-9a-f]{{8}}"),
    ],
)
def test_keys_are_class_and_stem_made_safe(path, expected):
    name, _, file = path.partition("/")
    key = keys(make_plan(listing({name: [file]})))[path]
    assert re.fullmatch(expected, key)
    assert KEY_PATTERN.fullmatch(key)


def test_two_files_of_one_stem_get_the_hash_of_their_paths():
    found = keys(make_plan(listing({"a": ["1.jpg", "1.png", "2.jpg", "X.jpg", "x.jpg"]})))
    assert found["a/2.jpg"] == "a_2"
    assert found["a/1.jpg"] == "a_1-" + hashlib.sha256(b"a/1.jpg").hexdigest()[:8]
    assert len({key.lower() for key in found.values()}) == 5


def test_a_class_whose_name_starts_with_another_s_cannot_share_a_key():
    found = keys(make_plan(listing({"a": ["b_1.jpg"], "a_b": ["1.jpg"], "a b": ["1.jpg"], "a.b": ["1.jpg"]})))
    assert found["a/b_1.jpg"] == "a_b_1"
    assert len({key.lower() for key in found.values()}) == 4


names = st.text(st.sampled_from("aAbB_-. é1"), min_size=1, max_size=6).filter(
    lambda name: not name.startswith(".")
)


@given(
    st.dictionaries(
        names, st.sets(names.map(lambda name: name + ".jpg"), min_size=1, max_size=6), min_size=1, max_size=6
    )
)
def test_keys_are_always_unique_and_fit_the_pattern(classes):
    found = list(keys(make_plan(listing(classes))).values())
    assert len(set(found)) == len(found)
    assert all(KEY_PATTERN.fullmatch(key) for key in found)
