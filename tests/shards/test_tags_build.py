"""`softshard tags build`: lists of all kinds and states, the same bytes for any number of processes, a plain oracle."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import msgpack
import pytest
from packed_files import files, samples
from tag_lists import ALL, ROWS, definitions, read_rows, write_rows

from softshard.shards import Manifest, pack, read_shard
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.shards.tags_build import TagOptions, build_tags
from softshard.shards.tags_tasks import TagSettings
from softshard.shards.tags_text import TextTagger, image_text


def test_a_list_with_tags_comes_out_that_pack_reads(tmp_path):
    report = build_tags(write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl", ALL, workers=1)
    assert read_rows(tmp_path / "out.jsonl") == [
        {"path": "1.jpg", "label": "dog", "tags": ["big cat", "green", "grass", "sea"]},
        {"path": "2.jpg", "label": "dog", "tags": ["cat", "sea", "grass", "big cat"]},
        {"path": "3.jpg", "label": "oak tree", "tags": ["oak"]},
        {"path": "4.jpg", "label": "oak_tree", "tags": ["oak tree"]},
        {"path": "5.jpg", "label": "zzz", "tags": []},
    ]
    assert (tmp_path / "out.vocabulary.tsv").read_text() == (
        "tag\timages\nbig cat\t2\ngrass\t2\nsea\t2\ncat\t1\ngreen\t1\noak\t1\noak tree\t1\n"
    )
    values = report.to_json()
    assert values["images_by_words_of"] == {"text": 2, "query": 1, "label": 1, "none": 1}
    assert values["coverage"] == 0.4
    assert values["tags_per_image"] == 2.0
    assert values["images_by_number_of_tags"] == [1, 2, 0, 0, 2, *[0] * 7]
    assert json.loads((tmp_path / "out.report.json").read_text())["images"] == 5
    assert not (tmp_path / "out.bad.jsonl").exists()


def test_cuts_size_and_most_tags(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    report = build_tags(source, tmp_path / "out.jsonl", TagOptions(min_images=2, max_share=1.0), workers=1)
    assert report.vocabulary == 3
    # What its query and label say is in the vocabulary no more than what its text does.
    assert [row["tags"] for row in read_rows(tmp_path / "out.jsonl")][2:] == [[], [], []]
    report = build_tags(
        source, tmp_path / "out.jsonl", TagOptions(min_images=1, max_share=0.3, vocabulary_size=2), workers=1
    )
    assert (report.chosen.num_too_common, report.chosen.num_beyond) == (3, 2)
    assert "too common: big cat (2), grass (2), sea (2)" in report.text()
    one = TagOptions(min_images=1, max_share=1.0, settings=TagSettings(max_tags=1))
    build_tags(source, tmp_path / "out.jsonl", one, workers=1)
    assert [row["tags"] for row in read_rows(tmp_path / "out.jsonl")][:2] == [["green"], ["cat"]]
    with pytest.raises(DataError, match="expected tags, found none: of 7 terms 7 are in fewer than 9 images"):
        build_tags(source, tmp_path / "out.jsonl", TagOptions(min_images=9), workers=1)


def test_without_fallback_and_with_a_given_vocabulary(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "v.tsv").write_text("tag\timages\noak\t9\nsea\t4\n")
    options = TagOptions(settings=TagSettings(fallback=False, keep=("title", "nothing")))
    report = build_tags(source, tmp_path / "out.jsonl", options, vocabulary=tmp_path / "v.tsv", workers=1)
    rows = read_rows(tmp_path / "out.jsonl")
    assert [row["tags"] for row in rows] == [["sea"], ["sea"], [], [], []]
    assert rows[0]["title"] == "A big cat"
    assert (report.vocabulary, report.chosen) == (2, None)
    assert not (tmp_path / "out.vocabulary.tsv").exists()


def test_rows_of_the_validation_part_stay_there(tmp_path):
    rows = [ROWS[0], {**ROWS[1], "split": "val"}, {**ROWS[1], "path": "6.jpg", "split": "test"}]
    build_tags(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", ALL, workers=1)
    assert [row.get("split") for row in read_rows(tmp_path / "out.jsonl")] == [None, "val", None]


def test_the_validation_part_counts_neither_for_the_vocabulary_nor_for_shares(tmp_path):
    train = [{"path": f"{i}.jpg", "label": "dog", "title": "cat" if i < 5 else "sea"} for i in range(10)]
    val = [{"path": f"v{i}.jpg", "label": "dog", "title": "oak", "split": "val"} for i in range(30)]
    options = TagOptions(min_images=1, max_share=0.4)  # of 40 images 5 were few enough
    source = write_rows(tmp_path / "in.jsonl", [*train, {**train[0], "title": "sun"}, val[0], *val])
    with pytest.raises(DataError, match="of 2 terms 0 are in fewer than 1 images and 2 in more than"):
        build_tags(source, tmp_path / "out.jsonl", options, workers=1)
    build_tags(source, tmp_path / "out.jsonl", ALL, workers=1)
    assert (tmp_path / "out.vocabulary.tsv").read_text() == "tag\timages\ncat\t5\nsea\t5\n"
    rows = read_rows(tmp_path / "out.jsonl")
    assert [row.get("split") for row in rows] == [None] * 10 + ["val"] * 30


def test_numbers_as_labels_are_named_by_the_class_list(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"path": "1.jpg", "label": 1}, {"path": "2.jpg", "label": 7}])
    options = TagOptions(
        min_images=1, max_share=1.0, settings=TagSettings(class_names=("n02123045", "big_cat"))
    )
    build_tags(source, tmp_path / "out.jsonl", options, workers=1)
    assert [row["tags"] for row in read_rows(tmp_path / "out.jsonl")] == [["big cat"], []]


def test_the_bytes_are_the_same_for_any_number_of_processes_and_those_of_a_plain_loop(tmp_path):
    rows = definitions(4500)  # three blocks
    rows += [rows[7], {**rows[7], "description": "another text"}, {"path": "x", "label": ""}]
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        source = write_rows(tmp_path / str(workers) / "in.jsonl", rows)
        report = build_tags(source, source.with_name("out.jsonl"), workers=workers)
        assert (report.read, report.images, report.duplicates, report.bad_rows) == (4503, 4500, 2, 1)
    one, two = files(tmp_path / "1"), files(tmp_path / "2")
    report_of = lambda found: {**json.loads(found.pop("out.report.json")), "source": ""}  # noqa: E731
    assert report_of(one) == report_of(two)
    for found in (one, two):
        found["out.bad.jsonl"] = found["out.bad.jsonl"].replace(b"/2/in.jsonl", b"/1/in.jsonl")
    assert one == two

    tagger = TextTagger()
    found = [tagger(image_text(row).text) or tagger(row["label"]) for row in rows[:4500]]
    images = Counter(tag for tags in found for tag in tags)
    kept = {tag: n for tag, n in images.items() if 2 <= n <= 0.25 * 4500}
    best = sorted(kept.items(), key=lambda item: (-item[1], item[0]))[:35_000]
    table = one["out.vocabulary.tsv"].decode().splitlines()[1:]
    assert table == [f"{tag}\t{n}" for tag, n in best]
    written = [json.loads(line) for line in one["out.jsonl"].splitlines()]
    with_own = [(row, tags) for row, tags in zip(written, found, strict=True) if set(tags) & set(kept)]
    assert len(with_own) > 4000
    assert all(row["tags"] == [tag for tag in tags if tag in kept] for row, tags in with_own)


def test_what_comes_twice_or_cannot_be_read_is_in_the_ledger(tmp_path):
    good = [json.dumps(row).encode() for row in ROWS]
    lines = [
        b"\xef\xbb\xbf" + good[0],
        good[1] + b"\r",
        good[0],
        b"{",
        b"[]",
        b'{"path": "caf\xe9.jpg", "label": "dog"}',
        b'{"path": "9.jpg", "label": "dog", "title": "' + b"x" * 2_000_000 + b'"}',
        b'{"path": "", "label": "dog"}',
        b'{"path": "\\ud800", "label": "dog"}',
        b"",
        good[4],
    ]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(lines))
    report = build_tags(source, tmp_path / "out.jsonl", ALL, workers=1)
    assert (report.read, report.images, report.duplicates, report.bad_rows) == (10, 3, 1, 6)
    bad = read_rows(tmp_path / "out.bad.jsonl")
    assert Counter(row["kind"] for row in bad) == {"row": 6, "duplicate": 1}
    assert [row["path"] for row in bad if row["kind"] == "duplicate"] == ["1.jpg"]
    reasons = "\n".join(row["reason"] for row in bad)
    for reason in (
        "line 4: expected a JSON object",
        "line 5: expected a JSON object, found list",
        "line 6: expected UTF-8 text, found byte 0xe9",
        "line 7: expected at most 1048576 bytes, found more",
        "line 8: expected a path, found ''",
        "line 9: expected text, found half a character",
    ):
        assert reason in reasons
    # The count of images is that of the lines, not of the rows.
    assert "big cat\t2\n" in (tmp_path / "out.vocabulary.tsv").read_text()
    with pytest.raises(
        DataError, match=r"found 6 and 0 of 10; mend them, or raise --max-bad. The first:\n.*line 4"
    ):
        build_tags(source, tmp_path / "no.jsonl", TagOptions(max_bad=0.0), workers=1)
    assert not (tmp_path / "no.jsonl").exists()


def test_a_ragged_csv_with_a_byte_order_mark_and_crlf(tmp_path):
    text = 'path,label,title,tags\r\n1.jpg,dog,"big\r\ncat",sea; grass\r\n2.jpg,dog\r\n\r\n'
    text += "3.jpg,dog,sea,a,b\r\n4.jpg,dog,,\r\n"
    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    report = build_tags(tmp_path / "in.csv", tmp_path / "out.jsonl", ALL, workers=1)
    assert (report.images, report.bad_rows) == (2, 2)
    assert [row["tags"] for row in read_rows(tmp_path / "out.jsonl")] == [
        ["big cat", "sea", "grass"],
        ["dog"],
    ]
    reasons = [row["reason"] for row in read_rows(tmp_path / "out.bad.jsonl")]
    assert ["expected 4 cells as in the header, found 2" in reason for reason in reasons] == [True, False]


def test_a_stray_quote_in_a_csv_costs_one_row(tmp_path):
    lines = [f"{i}.jpg,dog,a big cat" for i in range(1000)]
    lines[10] = '10.jpg,dog,"a big cat'
    (tmp_path / "in.csv").write_text("path,label,title\n" + "\n".join(lines) + "\n")
    report = build_tags(tmp_path / "in.csv", tmp_path / "out.jsonl", ALL, workers=1)
    assert (report.read, report.images, report.bad_rows) == (1000, 999, 1)
    assert "line 12: inside a quote up to line " in (tmp_path / "out.bad.jsonl").read_text()


def test_a_query_and_a_label_without_end_are_cut_as_well(tmp_path):
    rows = [
        {"path": "1.jpg", "label": "dog", "query": "of " * 10_000 + "sea"},
        {"path": "2.jpg", "label": "of_" * 10_000 + "oak"},
    ]
    report = build_tags(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", ALL, workers=1)
    assert [row["tags"] for row in read_rows(tmp_path / "out.jsonl")] == [["dog"], []]
    assert report.stats.by_source == {"label": 1, "none": 1}


def test_long_captions_are_cut_and_counted(tmp_path):
    rows = [{"path": "1.jpg", "label": "dog", "description": "big cat " * 20_000 + "sea"}]
    report = build_tags(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", ALL, workers=1)
    assert report.fields_cut == 1
    assert read_rows(tmp_path / "out.jsonl")[0]["tags"] == ["big cat"]
    assert "1 text of more than 20,000 characters" in report.text()


def test_a_source_that_changes_between_the_passes_is_refused(tmp_path, monkeypatch):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    real = build_tags.__globals__["choose_vocabulary"]

    def choose(*args, **kwargs):
        write_rows(source, ROWS[:3])
        return real(*args, **kwargs)

    monkeypatch.setitem(build_tags.__globals__, "choose_vocabulary", choose)
    monkeypatch.setitem(build_tags.__globals__, "BLOCKS_KEPT", 1)  # so that there is something to keep
    with pytest.raises(
        DataError, match="expected 5 images as on the first pass, found 3; the source changed"
    ):
        build_tags(source, tmp_path / "out.jsonl", ALL, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.csv", "expected a name that ends with .jsonl"),
        ("no/out.jsonl", "expected a folder that is there, found none. Run: mkdir -p"),
        ("in.jsonl", "expected another file than the source"),
    ],
)
def test_a_wrong_call_is_told_before_any_work(tmp_path, output, message):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(UsageError, match=message):
        build_tags(source, tmp_path / output)
    with pytest.raises(UsageError, match="expected a list of path, label and text"):
        build_tags(tmp_path, tmp_path / "out.jsonl")
    assert read_rows(source) == ROWS


@pytest.mark.parametrize(
    "options",
    [
        {"max_bad": 2.0},
        {"min_images": 0},
        {"settings": TagSettings(tagger="x")},
        {"settings": TagSettings(max_tags=-1)},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="expected"):
        TagOptions(**options)


def test_an_empty_list_is_bad_data(tmp_path):
    with pytest.raises(DataError, match="expected images with path and label, found none"):
        build_tags(write_rows(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl")


def test_tags_travel_into_shards_and_paths_lead_from_the_new_list_to_the_images(
    tmp_path, source, options, capsys
):
    images = sorted(source.rglob("*.jpg"))
    rows = [
        {"path": str(p.relative_to(source)), "label": p.parent.name, "title": f"a {p.parent.name} in the sea"}
        for p in images
    ]
    write_rows(source / "in.jsonl", rows)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "tags.jsonl"
    arguments = [
        "tags",
        "build",
        str(source / "in.jsonl"),
        "-o",
        str(out),
        "--max-share",
        "1",
        "--workers",
        "1",
    ]
    assert main([*arguments, "--keep", "title"]) == 0
    assert "tags per image: 2.00" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(images)
    assert pack(out, tmp_path / "set", options, workers=1).packed == len(images)
    assert Manifest.load(tmp_path / "set" / "train").class_names == ("bird", "dog", "oak")
    for sample in read_shard(tmp_path / "set" / "train" / "train-000000.tar"):
        meta = msgpack.unpackb(sample.parts["msgpack"])
        assert meta["metadata"]["tags"] == [Path(meta["path"]).parent.name, "sea"]


@pytest.mark.usefixtures("one_ray_at_a_time")
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install '.[ray]'")
def test_ray_writes_the_same_bytes(tmp_path):
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        source = write_rows(tmp_path / engine / "in.jsonl", definitions(2100))
        build_tags(source, source.with_name("out.jsonl"), workers=1, engine=engine)
    local, ray = files(tmp_path / "local"), files(tmp_path / "ray")
    del local["out.report.json"], ray["out.report.json"]  # they name the source
    assert local == ray


@pytest.mark.shared
def test_photographs_are_tagged_by_what_timm_says_of_their_classes(shared_data, tmp_path):
    """The full path on real text: list, tags, shards."""
    photos = shared_data.resolve() / "photos"
    wnids = sorted(path.name for path in photos.iterdir() if path.is_dir())
    folder = Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    said = {}
    for name in ("lemma", "definition"):
        lines = (folder / f"imagenet_synset_to_{name}.txt").read_text("utf-8").splitlines()
        said[name] = dict(line.split("\t", 1) for line in lines)
    rows = [
        {
            "path": str(next((photos / wnid).iterdir())),
            "label": wnid,
            "title": said["lemma"][wnid],
            "description": said["definition"][wnid],
        }
        for wnid in wnids
    ]
    report = build_tags(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "tags.jsonl", workers=1)
    assert (report.images, report.bad_rows, report.duplicates) == (300, 0, 0)
    assert report.coverage > 0.9
    assert 2 < report.stats.tags / 300 < 8
    assert pack(tmp_path / "tags.jsonl", tmp_path / "set", workers=1).packed == 300
    vocabulary = set((tmp_path / "tags.vocabulary.tsv").read_text().splitlines()[1:])
    vocabulary = {line.partition("\t")[0] for line in vocabulary}
    tags = {}
    for parts in samples(tmp_path / "set" / "train").values():
        meta = msgpack.unpackb(parts["msgpack"])
        tags[Path(meta["path"]).parent.name] = meta["metadata"]["tags"]
    assert len(tags) == 300
    assert {tag for found in tags.values() for tag in found} == vocabulary
    assert "big cat" in vocabulary or "large" in vocabulary


def test_a_list_in_a_bucket_gives_urls_that_pack_reads(tmp_path, s3_bucket, s3_client, jpeg, options):
    bucket = s3_bucket.removeprefix("s3://")
    for i in range(4):
        s3_client.put_object(Bucket=bucket, Key=f"web/{i}.jpg", Body=jpeg(30, 40, seed=i))
    rows = [{"path": f"{i}.jpg", "label": "dog", "title": "a big cat"} for i in range(4)]
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    s3_client.put_object(Bucket=bucket, Key="web/in.jsonl", Body=body)
    build_tags(f"{s3_bucket}/web/in.jsonl", tmp_path / "out.jsonl", ALL, workers=1)
    assert [row["path"] for row in read_rows(tmp_path / "out.jsonl")] == [
        f"{s3_bucket}/web/{i}.jpg" for i in range(4)
    ]
    assert pack(tmp_path / "out.jsonl", tmp_path / "set", options, workers=1).packed == 4
