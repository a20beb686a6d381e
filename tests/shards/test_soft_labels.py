"""Tags, weights and pseudo labels as bytes and in a manifest: what is written is read; nothing else is."""

import dataclasses

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tag_lists import VOCABULARY

from softshard.shards import DataError
from softshard.shards.soft_labels import (
    SoftLabelInfo,
    decode_soft_labels,
    encode_meta,
    encode_pseudo_labels,
    soft_labels_problem,
)

NAN, INFINITE = float("nan"), float("inf")


def where(i):
    return f"train-000000.tar: sample 'k{i}'"


def weighted(num_classes):
    ids = st.lists(st.integers(0, num_classes - 1), unique=True).map(sorted)
    weight = st.floats(0, 2.0**100, width=32)
    return ids.flatmap(
        lambda ids: st.tuples(st.just(ids), st.lists(weight, min_size=len(ids), max_size=len(ids)))
    )


@given(st.lists(weighted(12), max_size=6))
def test_what_is_encoded_is_decoded(samples):
    for kind in ("weights", "pseudo"):
        if kind == "pseudo":
            members = [encode_pseudo_labels(ids, weights, 12) for ids, weights in samples]
        else:
            members = [encode_meta({"path": "a", "weights": [ids, weights]}) for ids, weights in samples]
        found = decode_soft_labels(kind, members, 12, where)
        for i, (ids, weights) in enumerate(samples):
            assert found.ids[found.rows == i].tolist() == ids
            assert found.weights[found.rows == i].tolist() == weights
        assert found.weights.dtype == np.float32


@given(st.lists(st.lists(st.integers(0, 30), unique=True).map(sorted), max_size=6))
def test_tags_are_decoded_in_order_with_weight_one(samples):
    members = [encode_meta({"path": "a", "tags": tags}) for tags in samples]
    found = decode_soft_labels("tags", members, 31, where)
    assert [found.ids[found.rows == i].tolist() for i in range(len(samples))] == samples
    assert (found.weights == 1).all()


def test_weights_take_five_bytes_each_and_other_fields_stay_as_they_were():
    meta = {"path": "a", "size": [1, 2], "metadata": {"weights": 0.1}}
    assert encode_meta(meta) == msgpack.packb(meta)
    longer = encode_meta({**meta, "weights": [[1, 2], [0.1, 0.2]]})
    assert longer[1 : len(msgpack.packb(meta))] == msgpack.packb(meta)[1:]
    assert len(longer) == len(msgpack.packb(meta)) + len(msgpack.packb("weights")) + 3 + 2 + 2 * 5
    assert msgpack.unpackb(longer)["metadata"] == {"weights": 0.1}


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("tags", 3, "expected a list of tags, found 3"),
        ("tags", [3], "expected tags from 0 to 2, found 3"),
        ("tags", [-1], "expected tags from 0 to 2, found -1"),
        ("tags", [0, 1.0], "expected tags from 0 to 2, found 1.0"),
        ("tags", [True], "found True"),
        ("tags", ["1"], "found '1'"),
        ("tags", [2**63], "found 9223372036854775808"),
        ("tags", [1, 0], "expected ascending tags, each once, found [1, 0]"),
        ("tags", [1, 1], "each once"),
        ("tags", [0, 1, 2, 0], "expected at most the 3 tags of the vocabulary, found 4"),
        ("tags", {"0": 1}, "expected a list of tags"),
        ("weights", [[0]], "expected a list of class ids and one of weights"),
        ("weights", [[0], 1.0], "expected a list of class ids and one of weights"),
        ("weights", [[0, 1], [1.0]], "expected a weight for each of 2 classes, found 1"),
        ("weights", [[3], [1.0]], "expected class ids from 0 to 2, found 3"),
        ("weights", [[1, 0], [1.0, 1.0]], "expected ascending class ids"),
        ("weights", [[0], [NAN]], "expected weights from 0, found nan"),
        ("weights", [[0], [INFINITE]], "expected weights from 0, found inf"),
        ("weights", [[0], [-0.5]], "expected weights from 0, found -0.5"),
        ("weights", [[0], [1e39]], "expected weights from 0, found 1e+39"),
        ("weights", [[0], ["1"]], "expected weights from 0, found '1'"),
        ("weights", [[0], [True]], "expected weights from 0, found True"),
    ],
)
def test_a_hostile_value_is_named_with_its_sample(kind, value, says):
    num = 3
    good = msgpack.packb({kind: [] if kind == "tags" else [[], []]})
    with pytest.raises(DataError) as caught:
        decode_soft_labels(kind, [good, msgpack.packb({kind: value})], num, where)
    assert "sample 'k1', component 'msgpack'" in str(caught.value)
    assert says in str(caught.value)
    if kind == "weights":
        with pytest.raises(DataError, match="sample 'k0', component 'soft'"):
            decode_soft_labels("pseudo", [msgpack.packb(value)], num, where)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x93"])
def test_what_is_no_message_pack_is_an_error_and_takes_no_memory(data):
    for kind in ("tags", "weights", "pseudo"):
        with pytest.raises(DataError, match="sample 'k0'"):
            decode_soft_labels(kind, [data], 3, where)


def test_a_field_that_misses_is_named():
    with pytest.raises(
        DataError, match="expected a field 'tags', which the manifest says that samples have, found 'path'"
    ):
        decode_soft_labels("tags", [msgpack.packb({"path": "a"})], 3, where)


def test_pseudo_labels_that_are_none_are_not_written():
    with pytest.raises(DataError, match="pseudo labels: expected class ids from 0 to 2, found 5"):
        encode_pseudo_labels([5], [1.0], 3)
    with pytest.raises(DataError, match="found nan"):
        encode_pseudo_labels(np.array([1]), np.array([NAN], np.float32), 3)


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {"tags": {"name": "../x", "size": 1, "sha256": "0" * 64}},
        {"tags": {"name": "vocabulary.tsv", "size": 0, "sha256": "0" * 64}},
        {"tags": {"name": "vocabulary.tsv", "size": 1, "sha256": "0"}},
        {"tags": {"name": "vocabulary.tsv", "size": 1, "sha256": "0" * 64, "how": "well"}},
        {"weights": {}},
        {"pseudo": {"how": 3}},
        {"pseudo": {"how": {}}},
    ],
)
def test_an_entry_of_a_manifest_that_is_none_is_told(entry):
    assert "expected" in str(soft_labels_problem(entry, ["jpg", "cls", "msgpack"]))


def test_what_a_manifest_says_is_read_back():
    info = SoftLabelInfo(4, VOCABULARY.sha256, {"by": "wup"}, {"model": "a"})
    for told in (info, dataclasses.replace(info, tags={"tagger": "wordnet"})):
        assert soft_labels_problem(told.to_json(), ["soft"]) is None
        assert SoftLabelInfo.from_json(told.to_json()) == told
    assert soft_labels_problem(None, ["jpg"]) is None
    assert "'soft'" in str(soft_labels_problem(None, ["soft"]))
