"""Tags, weights and pseudo labels: what is written is read; nothing else is."""

import csv
import dataclasses
import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_files import samples
from spoiling import rewrite

from softshard.shards import (
    DataError,
    ImageRecipe,
    Manifest,
    PackOptions,
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
from softshard.shards.pack_soft import load_how, soft_info
from softshard.shards.pseudo_labels import pseudo_component
from softshard.shards.soft_labels import (
    SoftLabelInfo,
    decode_soft_labels,
    encode_meta,
    encode_pseudo_labels,
    merged_classes,
    soft_labels_problem,
)
from softshard.shards.stored_vocabulary import Vocabulary, load_vocabulary
from softshard.shards.subset_file import ClassGroup, SubsetFile

TAGS = ("beast of prey", "big cat", "zoo", "tree")
VOCABULARY = Vocabulary(TAGS, (7, 5, 3, 2))
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


def test_a_vocabulary_is_read_back(tmp_path):
    file = tmp_path / "v.tsv"
    file.write_bytes(VOCABULARY.to_bytes())
    assert Vocabulary.load(file) == VOCABULARY
    file.write_bytes(b"\xef\xbb\xbf" + VOCABULARY.to_bytes().replace(b"\n", b"\r\n"))
    assert Vocabulary.load(file).sha256 == VOCABULARY.sha256


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a vocabulary that begins with 'tag\\timages', found ''"),
        ("tags\n", "found 'tags'"),
        ("tag\timages\n", "expected 1 to 1,048,576 tags, found 0"),
        ("tag\timages\na\t1\na\t2\n", "line 3: 'a' stands on line 2 already"),
        ("tag\timages\na\n", "line 2: expected a tag, a tab and a number, found ['a']"),
        ("tag\timages\n \t1\n", "line 2: expected a tag"),
        ("tag\timages\na\t-1\n", "line 2: expected a tag"),
        ("tag\timages\na\t²\n", "line 2: expected a tag"),
        ("tag\timages\na\t1\tb\n", "line 2: expected a tag"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path, text, says):
    (tmp_path / "v.tsv").write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        Vocabulary.load(tmp_path / "v.tsv")
    assert says in str(caught.value)


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


# Packing


@pytest.fixture
def web(tmp_path, source_maker):
    """A list of ten images with tags and weights, some of them wanting."""
    source_maker(tmp_path / "web", {"cat": 5, "dog": 5})
    rows = []
    for label in ("cat", "dog"):
        for i in range(5):
            row = {"path": f"{label}/{label}_{i}.jpg", "label": label, "title": f"a {label}"}
            row["tags"] = ["zoo", "big cat", "zoo", "nowhere"][: i + 1]
            row["weights"] = {"dog": 0.4, label: 1.0}
            rows.append(row)
    rows[1]["tags"] = []
    del rows[2]["tags"], rows[3]["weights"]
    write_rows(tmp_path / "web" / "web.jsonl", rows)
    (tmp_path / "v.tsv").write_bytes(VOCABULARY.to_bytes())
    return tmp_path / "web" / "web.jsonl", rows


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fields_by_path(dataset):
    metas = [msgpack.unpackb(parts["msgpack"]) for parts in samples(dataset).values()]
    return {meta["path"]: meta for meta in metas}


OPTIONS = {"image": ImageRecipe(resize="none"), "shard_samples": 4}


def test_packing_turns_names_into_ids(web, tmp_path):
    file, rows = web
    options = PackOptions(**OPTIONS, vocabulary=VOCABULARY, weights={"by": "wup"})
    summary = pack(file, tmp_path / "dst", options, workers=1)
    dataset = tmp_path / "dst" / "train"
    manifest = Manifest.load(dataset)
    assert manifest.soft_labels == SoftLabelInfo(4, VOCABULARY.sha256, {"by": "wup"})
    assert load_vocabulary(dataset, VOCABULARY.sha256) == VOCABULARY
    found = fields_by_path(dataset)
    for row in rows:
        meta = found[row["path"]]
        assert meta["tags"] == sorted({TAGS.index(tag) for tag in row.get("tags", ()) if tag in TAGS})
        named = row.get("weights", {})
        ids, weights = meta["weights"]
        assert dict(zip(ids, weights, strict=True)) == {
            manifest.class_names.index(name): float(np.float32(weight)) for name, weight in named.items()
        }
        assert meta["metadata"] == {"title": row["title"]}
    # The fourth and fifth image of each class have a tag that the vocabulary lacks.
    assert summary.soft == {"unknown_tags": 4, "without_tags": 2, "without_weights": 1}


def test_without_the_options_the_columns_stay_metadata_and_the_manifest_says_nothing(web, tmp_path):
    file, rows = web
    pack(file, tmp_path / "dst", PackOptions(**OPTIONS), workers=1)
    assert "soft_labels" not in json.loads((tmp_path / "dst" / "train" / "manifest.json").read_text())
    assert not (tmp_path / "dst" / "train" / "vocabulary.tsv").exists()
    assert "soft" not in json.loads((tmp_path / "dst" / "plan.json").read_text())["options"]
    meta = fields_by_path(tmp_path / "dst" / "train")[rows[0]["path"]]
    assert "tags" not in meta
    assert meta["metadata"]["tags"] == rows[0]["tags"]


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("tags", 3, "bad-tags"),
        ("tags", [1], "bad-tags"),
        ("weights", [1], "bad-weights"),
        ("weights", {"wolf": 1.0}, "bad-weights"),
        ("weights", {"dog": -1.0}, "bad-weights"),
        ("weights", {"dog": "1"}, "bad-weights"),
        ("weights", {"dog": NAN}, "bad-weights"),
        ("weights", {"dog": True}, "bad-weights"),
        ("weights", {"dog": None}, "bad-weights"),
        ("weights", {"dog": 10**400}, "bad-weights"),
        ("weights", "dog=1", "bad-weights"),
        ("weights", "[" * 100_000, "bad-weights"),
    ],
)
def test_a_row_that_says_nonsense_is_a_bad_input(web, tmp_path, column, value, kind):
    file, rows = web
    rows[4][column] = value
    write_rows(file, rows)
    summary = pack(
        file, tmp_path / "dst", PackOptions(**OPTIONS, vocabulary=VOCABULARY, weights={}), workers=1
    )
    (line,) = (tmp_path / "dst" / "bad.jsonl").read_text().splitlines()
    assert (json.loads(line)["kind"], json.loads(line)["path"]) == (kind, rows[4]["path"])
    assert summary.packed == 9


def test_a_csv_gives_the_same_tags_and_weights_as_json_lines(web, tmp_path):
    file, rows = web
    options = PackOptions(**OPTIONS, vocabulary=VOCABULARY, weights={})
    pack(file, tmp_path / "json", options, workers=1)
    with open(file.with_suffix(".csv"), "w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["path", "label", "title", "tags", "weights"])
        for row in rows:
            weights = json.dumps(row["weights"]) if "weights" in row else ""
            tags = "|".join([*row.get("tags", ()), ""])
            writer.writerow([row["path"], row["label"], row["title"], tags, weights])
    pack(file.with_suffix(".csv"), tmp_path / "csv", options, workers=1)
    shards = [Manifest.load(tmp_path / kind / "train").shards for kind in ("json", "csv")]
    assert shards[0] == shards[1]


@pytest.mark.parametrize("status", [401, 403, 404, 200])
def test_how_a_list_was_made_is_optional_and_found_behind_a_signed_url(status):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"by": "lin"}')

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/set/web.jsonl?sig=a/b.c"
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert load_how(url, "weights") == ({"by": "lin"} if status == 200 else {})
        server.shutdown()
    assert set(asked) == {"/set/web.weights.json?sig=a/b.c"}
    texts = [str(warning.message) for warning in warned if warning.category is UserWarning]
    assert [("web.weights.json: cannot be read" in text, "sig" in text) for text in texts] == (
        [(True, False)] if status in (401, 403) else []
    )


def test_of_tags_made_with_another_vocabulary_its_cuts_are_not_told():
    cuts = {"vocabulary_size": 9, "min_images": 2, "max_share": 0.5, "images": 7}
    how = {"tagger": "wordnet", **cuts, "vocabulary_sha256": VOCABULARY.sha256}
    info = soft_info(VOCABULARY, None, how)
    assert info is not None
    assert info.tags == how
    info = soft_info(VOCABULARY, None, {**how, "vocabulary_sha256": "0" * 64})
    assert info is not None
    assert info.tags == {"tagger": "wordnet", "made_with_vocabulary": "0" * 64}


def test_a_source_without_columns_is_refused(source, tmp_path):
    with pytest.raises(UsageError, match="expected a list with a column of tags or weights"):
        pack(source, tmp_path / "dst", PackOptions(vocabulary=VOCABULARY), workers=1)


def test_another_vocabulary_is_another_plan(web, tmp_path):
    file, _ = web
    pack(file, tmp_path / "dst", PackOptions(**OPTIONS, vocabulary=VOCABULARY), workers=1)
    other = Vocabulary(TAGS[:3], (1, 1, 1))
    with pytest.raises(UsageError, match="vocabulary was"):
        pack(file, tmp_path / "dst", PackOptions(**OPTIONS, vocabulary=other), workers=1)
    with pytest.raises(UsageError, match=r"vocabulary was given, is not\. Give the same again"):
        pack(file, tmp_path / "dst", PackOptions(**OPTIONS), workers=1)


def test_the_command_packs_both_and_says_what_misses(web, tmp_path, capsys):
    file, _ = web
    file.with_name("web.weights.json").write_text('{"by": "lin"}')
    file.with_name("web.tags.json").write_text('{"tagger": "wordnet"}')
    assert load_how(file, "weights") == {"by": "lin"}
    assert load_how(file, "tags") == {"tagger": "wordnet"}
    command = ["pack", file, tmp_path / "dst", "--vocabulary", tmp_path / "v.tsv", "--weights", "--workers=1"]
    assert main([*map(str, command)]) == 0
    text = capsys.readouterr().out
    assert "4 tags left out that the vocabulary lacks" in text
    assert "1 images without weights" in text
    wanted = SoftLabelInfo(4, VOCABULARY.sha256, {"by": "lin"}, tags={"tagger": "wordnet"})
    assert Manifest.load(tmp_path / "dst" / "train").soft_labels == wanted
    assert main(["stats", str(tmp_path / "dst" / "train"), "--html", str(tmp_path / "stats.html")]) == 0
    text = capsys.readouterr().out
    assert f"  tags            vocabulary of 4, {VOCABULARY.sha256[:12]}; tagger wordnet\n" in text
    assert "  class weights   by lin\n" in text
    assert "Tags: vocabulary of 4" in (tmp_path / "stats.html").read_text()


# Data sets that are made of others


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
    pack(
        web[0],
        tmp_path / "dst",
        PackOptions(**OPTIONS, vocabulary=VOCABULARY, weights={"by": "wup"}),
        workers=1,
    )
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
    other = Vocabulary(TAGS[::-1], (1, 2, 3, 4))
    pack(web[0], tmp_path / "other", PackOptions(**OPTIONS, vocabulary=other, weights={}), workers=1)
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
    (dataset / "vocabulary.tsv").write_bytes(Vocabulary(TAGS[::-1], (1, 2, 3, 4)).to_bytes())
    (problem,) = verify(dataset, workers=1).problems
    assert "the tags were packed with another one" in problem
    (dataset / "vocabulary.tsv").unlink()
    (problem,) = verify(dataset, workers=1).problems
    assert "vocabulary.tsv" in problem


# Tags and weights that are added to finished sets


@pytest.fixture
def plain(web, tmp_path):
    """The same images without soft labels."""
    pack(web[0], tmp_path / "plain", PackOptions(**OPTIONS), workers=1)
    return tmp_path / "plain" / "train"


def test_reshard_joins_a_list_by_path_to_what_packing_it_gives(web, plain, tmp_path):
    file, _ = web
    pack(file, tmp_path / "dst", PackOptions(**OPTIONS, vocabulary=VOCABULARY, weights={}), workers=1)
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
