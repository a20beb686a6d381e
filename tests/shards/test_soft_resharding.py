"""Soft labels of finished data sets: kept, dropped, merged, checked, and added from a list."""

import json

import msgpack
import numpy as np
import pytest
from packed_files import fields_by_path, samples
from spoiling import rewrite
from tag_lists import VOCABULARY, unresized, write_rows

from softshard.shards import (
    DataError,
    Manifest,
    ReshardOptions,
    UsageError,
    pack,
    read_shard,
    reshard,
    verify,
)
from softshard.shards.added_component import attach, finish, settle
from softshard.shards.cli import main
from softshard.shards.destination import open_destination
from softshard.shards.pseudo_labels import pseudo_component
from softshard.shards.soft_labels import SoftLabelInfo, encode_pseudo_labels, merged_classes
from softshard.shards.stored_vocabulary import Vocabulary, load_vocabulary
from softshard.shards.subset_file import ClassGroup, SubsetFile

NAN = float("nan")


def add_pseudo_labels(dataset, destination, labels):
    """A data set with pseudo labels, (ids, weights) by key."""
    source, target = Manifest.load(dataset), open_destination(destination)
    component = pseudo_component(source, {"model": "none"})
    target.make()
    plan, _ = settle(target, {"pseudo": source.fingerprint}, source)
    for record in source.shards:
        samples = list(read_shard(dataset / record.name))
        pairs = [
            (sample.key, encode_pseudo_labels(*labels[sample.key], source.num_classes)) for sample in samples
        ]
        attach(target, record, samples, component.beside(source), "soft", pairs, plan)
    return finish(target, dataset, source, component, plan)


@pytest.fixture
def soft(web, tmp_path):
    """A data set with tags, weights and pseudo labels."""
    pack(web[0], tmp_path / "dst", unresized(vocabulary=VOCABULARY, weights={"by": "wup"}), workers=1)
    dataset = tmp_path / "dst" / "train"
    labels = {key: ([0, 1], [0.25, i / 16]) for i, key in enumerate(samples(dataset))}
    add_pseudo_labels(dataset, tmp_path / "soft", labels)
    return tmp_path / "soft", labels


def test_pseudo_labels_are_added_beside_what_is_there(soft):
    dataset, labels = soft
    manifest = Manifest.load(dataset)
    assert manifest.soft_labels == SoftLabelInfo(4, VOCABULARY.sha256, {"by": "wup"}, {"model": "none"})
    assert manifest.components[-1] == "soft"
    for key, parts in samples(dataset).items():
        assert tuple(msgpack.unpackb(parts["soft"])) == labels[key]
    assert load_vocabulary(dataset, VOCABULARY.sha256) == VOCABULARY
    assert verify(dataset, workers=1).problems == []


def test_resharding_keeps_them_and_drops_them(soft, tmp_path):
    dataset, _ = soft
    manifest = Manifest.load(dataset)
    again = reshard([dataset], tmp_path / "again" / "train", ReshardOptions(shard_samples=3))
    assert again.soft_labels == manifest.soft_labels
    assert load_vocabulary(tmp_path / "again" / "train", VOCABULARY.sha256) == VOCABULARY
    dropped = reshard([dataset], tmp_path / "dropped", ReshardOptions(drop=("soft",)))
    assert dropped.soft_labels == SoftLabelInfo(4, VOCABULARY.sha256, {"by": "wup"})
    assert fields_by_path(tmp_path / "dropped") == fields_by_path(dataset)


def test_a_subset_that_is_written_out_adds_up_pseudo_labels(soft, tmp_path):
    dataset = soft[0]
    subset = SubsetFile((ClassGroup("beast", ("cat", "dog")),), {"name": "file"}, {})
    manifest = reshard([dataset], tmp_path / "one", ReshardOptions(subset=subset))
    assert manifest.soft_labels == Manifest.load(dataset).soft_labels
    assert verify(tmp_path / "one").problems == []
    before, after = samples(dataset), samples(tmp_path / "one")
    assert before.keys() == after.keys()
    for key, parts in before.items():
        ids, weights = msgpack.unpackb(parts["soft"])
        assert msgpack.unpackb(after[key]["soft"]) == [
            [0] * bool(ids), [pytest.approx(sum(weights))] * bool(ids),
        ]  # fmt: skip


def test_damaged_weights_are_named_when_classes_are_merged():
    with pytest.raises(
        DataError, match=r"train-0\.tar: expected class ids from 0 to 1, found 2; it is damaged"
    ):
        merged_classes([[2], [1.0]], np.array([0, -1]), "train-0.tar")
    assert merged_classes([[0, 1, 2], [1.0, 2.0, 4.0]], np.array([1, -1, 1]), "") == [[1], [5.0]]


def test_sets_of_two_vocabularies_are_not_merged(web, soft, tmp_path):
    other = Vocabulary(VOCABULARY.tags[::-1], (1, 2, 3, 4))
    pack(web[0], tmp_path / "other", unresized(vocabulary=other, weights={}), workers=1)
    with pytest.raises(DataError, match="expected the tags' vocabulary"):
        reshard([soft[0], tmp_path / "other" / "train"], tmp_path / "both", ReshardOptions(drop=("soft",)))


@pytest.mark.parametrize(
    ("component", "change", "says"),
    [
        (
            "msgpack",
            lambda meta: {**meta, "tags": [4]},
            "component 'msgpack', tags: expected tags from 0 to 3, found 4",
        ),
        (
            "msgpack",
            lambda meta: {**meta, "weights": [[0], [NAN]]},
            "weights: expected weights from 0, found nan",
        ),
        (
            "msgpack",
            lambda meta: {k: meta[k] for k in ("path", "size", "tags")},
            "expected a field 'weights'",
        ),
        (
            "soft",
            lambda pair: [[2], [1.0]],
            "component 'soft', pseudo: expected class ids from 0 to 1, found 2",
        ),
    ],
)
def test_verify_names_the_sample_whose_soft_labels_are_wrong(soft, component, change, says):
    dataset, _ = soft
    ((_, key),) = rewrite(
        dataset, {2: {component: lambda data: msgpack.packb(change(msgpack.unpackb(data)))}}
    )
    (problem,) = verify(dataset, workers=1).problems
    assert f"sample {key!r}" in problem
    assert says in problem


def test_verify_compares_the_vocabulary(soft):
    dataset, _ = soft
    (dataset / "vocabulary.tsv").write_bytes(Vocabulary(VOCABULARY.tags[::-1], (1, 2, 3, 4)).to_bytes())
    (problem,) = verify(dataset, workers=1).problems
    assert "the tags were packed with another one" in problem
    (dataset / "vocabulary.tsv").unlink()
    (problem,) = verify(dataset, workers=1).problems
    assert "vocabulary.tsv" in problem


@pytest.fixture
def plain(web, tmp_path):
    """The same images without soft labels."""
    pack(web[0], tmp_path / "plain", unresized(), workers=1)
    return tmp_path / "plain" / "train"


def test_reshard_joins_a_list_by_path_to_what_packing_it_gives(web, plain, tmp_path):
    file, _ = web
    pack(file, tmp_path / "dst", unresized(vocabulary=VOCABULARY, weights={}), workers=1)
    options = ReshardOptions(shard_samples=3, tags=file, vocabulary=VOCABULARY, weights=file)
    made = reshard([plain], tmp_path / "joined", options)
    wanted, found = fields_by_path(tmp_path / "dst" / "train"), fields_by_path(tmp_path / "joined")
    for path, meta in wanted.items():
        assert found[path]["tags"] == meta["tags"]
        assert found[path]["weights"] == meta["weights"]
        assert found[path]["size"] == meta["size"]
    assert made.soft_labels == Manifest.load(tmp_path / "dst" / "train").soft_labels
    assert load_vocabulary(tmp_path / "joined", VOCABULARY.sha256) == VOCABULARY
    assert verify(tmp_path / "joined", workers=1).problems == []


def test_what_is_made_of_several_sets_says_how_each_was_made(web, plain, tmp_path):
    _, rows = web
    sets = []
    for label, tagger in (("cat", "wordnet"), ("dog", "nltk")):
        part = tmp_path / "web" / f"{label}.jsonl"
        write_rows(part, [row for row in rows if row["label"] == label])
        part.with_name(f"{label}.tags.json").write_text(json.dumps({"tagger": tagger}))
        kept = ReshardOptions(classes=(label,), name=label)
        reshard([plain], tmp_path / f"only-{label}", kept)
        options = ReshardOptions(tags=part, vocabulary=VOCABULARY)
        made = reshard([tmp_path / f"only-{label}"], tmp_path / f"with-{label}", options)
        assert made.soft_labels.tags == {"tagger": tagger}
        sets.append(tmp_path / f"with-{label}")
    both = reshard(sets, tmp_path / "both")
    assert both.soft_labels.tags == {"sources": [{"tagger": "wordnet"}, {"tagger": "nltk"}]}
    assert both.soft_labels.num_tags == 4
    assert reshard(sets[:1], tmp_path / "one").soft_labels.tags == {"tagger": "wordnet"}


def test_reshard_joins_by_key_replaces_and_reports_each_image_without_a_row(soft, tmp_path):
    dataset, labels = soft
    keys = sorted(labels)
    rows = [{"key": key, "tags": ["tree"]} for key in keys[:-2]]
    write_rows(tmp_path / "more.jsonl", [*rows, {"key": "nobody", "tags": ["zoo"]}])
    options = ReshardOptions(tags=tmp_path / "more.jsonl", vocabulary=VOCABULARY)
    made = reshard([dataset], tmp_path / "joined", options)
    counts = made.recipe["reshard"]["added"]["tags"]
    assert {name: counts[name] for name in ("without_tags", "rows_of_no_sample")} == {
        "without_tags": 2,
        "rows_of_no_sample": 1,
    }
    ledger = [json.loads(line) for line in (tmp_path / "joined" / "bad.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in ledger] == ["no-tags", "no-tags"]
    before = fields_by_path(dataset)
    for key, parts in samples(tmp_path / "joined").items():
        meta = msgpack.unpackb(parts["msgpack"])
        assert meta["tags"] == ([3] if key in keys[:-2] else [])
        assert meta["weights"] == before[meta["path"]]["weights"]  # not a bit of them changes
        assert (meta["path"] in [line["path"] for line in ledger]) == (key in keys[-2:])
    assert made.soft_labels == Manifest.load(dataset).soft_labels


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"path": "cat/cat_0.jpg", "tags": 3}], "line 1: expected tags as a list of strings"),
        ([{"tags": []}], "line 1: expected a path or a key, found None"),
        ([{"path": "cat/cat_0.jpg"}, {"path": "cat/cat_0.jpg"}], "line 2: expected one row a sample"),
        ([{"path": "elsewhere.jpg"}], "expected rows whose path or key is that of a sample, such as '"),
        ([[]], "line 1: expected a JSON object, found list"),
    ],
)
def test_a_list_that_says_nonsense_is_refused_before_anything_is_written(plain, tmp_path, rows, says):
    write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as caught:
        reshard([plain], tmp_path / "no", ReshardOptions(tags=tmp_path / "bad.jsonl", vocabulary=VOCABULARY))
    assert says in str(caught.value)
    assert not (tmp_path / "no").exists()


def test_tags_want_their_vocabulary_and_a_list(plain, tmp_path):
    with pytest.raises(UsageError, match="expected tags and their vocabulary together"):
        ReshardOptions(tags=tmp_path / "x.jsonl")
    with pytest.raises(UsageError, match="expected a local list of JSON lines"):
        reshard([plain], tmp_path / "no", ReshardOptions(weights=tmp_path / "x.jsonl"))


def test_the_reshard_command_says_what_misses(web, plain, tmp_path, capsys):
    file, _ = web
    command = ["reshard", plain, tmp_path / "out", "--tags", file, "--weights", file]
    assert main([*map(str, command), "--vocabulary", str(tmp_path / "v.tsv")]) == 0
    text = capsys.readouterr().out
    assert "tags: 4 unknown tags" in text
    assert "weights: 1 without weights" in text
