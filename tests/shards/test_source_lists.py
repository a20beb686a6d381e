"""File lists: CSV, TSV and JSON lines, in the states in which people have them."""

import dataclasses
import json

import msgpack
import pytest

from softshard.shards import DataError, Manifest, pack, read_shard
from softshard.shards.source_lists import csv_rows
from softshard.shards.sources import open_source


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(listing):
    return {folder.name: tuple(folder.files) for folder in listing.folders}


def test_a_list_is_packed_with_its_other_columns(source, tmp_path, options):
    lines = ["path,label,who"]
    lines += [
        f"source/{p.relative_to(source)},{p.parent.name},Ann {p.stem}" for p in sorted(source.rglob("*.jpg"))
    ]
    write(tmp_path / "list.csv", "\n".join(lines))
    assert pack(tmp_path / "list.csv", tmp_path / "set", options, workers=1).packed == 16
    shard = tmp_path / "set" / "train" / "train-000000.tar"
    for sample in read_shard(shard):
        meta = msgpack.unpackb(sample.parts["msgpack"])
        assert (tmp_path / meta["path"]).is_file()
        assert meta["metadata"]["who"].startswith("Ann ")


def test_byte_order_mark_crlf_quotes_blank_lines_and_column_order_do_not_matter(tmp_path):
    text = b'\xef\xbb\xbflabel , path\r\n"dog","a, b.jpg"\r\n\r\ncat, x.jpg\r\n'
    listing = open_source(write(tmp_path / "list.csv", text))
    assert rows(listing) == {"cat": (" x.jpg",), "dog": ("a, b.jpg",)}


def test_tab_separated_and_json_lines(tmp_path):
    tsv = open_source(write(tmp_path / "list.tsv", "path\tlabel\nb,1.jpg\tdog\n"))
    assert rows(tsv) == {"dog": ("b,1.jpg",)}
    lines = [{"path": "1.jpg", "label": "dog", "tags": {"a": 1}}, {"path": "2.jpg", "label": "cat"}]
    listing = open_source(write(tmp_path / "list.jsonl", "\r\n".join(map(json.dumps, lines))))
    assert rows(listing) == {"cat": ("2.jpg",), "dog": ("1.jpg",)}
    assert json.loads(listing.folders[1].metadata[0]) == {"tags": {"a": 1}}


def test_whole_numbers_are_indices_and_keep_their_order(tmp_path, source):
    paths = sorted(source.rglob("*.jpg"))
    text = "path,label\n" + "".join(
        f"source/{p.relative_to(source)},{i % 11 + 1}\n" for i, p in enumerate(paths)
    )
    write(tmp_path / "list.csv", text)
    assert open_source(tmp_path / "list.csv").class_names == tuple(map(str, range(12)))
    names = tuple(f"class{i}" for i in range(12))
    listing = open_source(tmp_path / "list.csv", names)
    assert {folder.name for folder in listing.folders} == set(names[1:])
    with pytest.raises(
        DataError, match="expected class indices below 3, the length of the class list, found 11"
    ):
        open_source(tmp_path / "list.csv", names[:3])
    with pytest.raises(DataError, match="below 1,000,000, found 2000000; is it an id"):
        open_source(write(tmp_path / "ids.csv", "path,label\n1.jpg,2000000\n"))


def test_a_label_of_thousands_of_digits_is_a_name(tmp_path):
    listing = open_source(write(tmp_path / "list.csv", f"path,label\n1.jpg,{'9' * 5000}\n"))
    assert [folder.name for folder in listing.folders] == ["9" * 5000]


def test_packing_by_numbers_stores_these_numbers(tmp_path, source, options):
    images = sorted(source.rglob("*.jpg"))
    text = "path,label\n" + "".join(f"{p},{i % 3 + 9}\n" for i, p in enumerate(images))
    summary = pack(write(tmp_path / "list.csv", text), tmp_path / "set", options, workers=1)
    assert summary.without_images == tuple(map(str, range(9)))
    assert Manifest.load(tmp_path / "set" / "train").class_names == tuple(map(str, range(12)))
    sample = next(read_shard(tmp_path / "set" / "train" / "train-000000.tar"))
    path = msgpack.unpackb(sample.parts["msgpack"])["path"]
    assert int(sample.parts["cls"]) == [str(p) for p in images].index(path) % 3 + 9


@pytest.mark.parametrize(
    ("name", "text", "messages"),
    [
        ("l.csv", "", ["expected rows of path and label, found none"]),
        ("l.csv", "path,label\n", ["expected rows of path and label, found none"]),
        (
            "l.csv",
            "file,label\n1.jpg,a\n",
            ["line 1: expected a header with path and label, found ['file', 'label']"],
        ),
        ("l.csv", "path,label,path\n", ["line 1: expected a header with path and label"]),
        (
            "l.csv",
            "path,label\n1.jpg\n2.jpg,a,b\n3.jpg,a\n,a\n4.jpg,\n",
            [
                "line 2: expected 2 cells as in the header, found 1",
                "line 3: expected 2 cells as in the header, found 3",
                "line 5: expected a path, found ''",
                "line 6: expected a label, found ''",
            ],
        ),
        ("l.csv", b"path,label\n1.jpg,caf\xe9\n", ["line 2: expected UTF-8 text, found byte 0xe9"]),
        (
            "l.csv",
            'path,label\n"1.jpg,a\n',
            ["line 2: expected comma-separated values, found: unexpected end"],
        ),
        ("l.csv", "path,label\n1.jpg,a\n1.jpg,a\n", ["'1.jpg': expected once in class 'a', found it again"]),
        (
            "l.jsonl",
            '{"path": 1, "label": "a"}\n[]\n{\n{"path": "x", "label": true}\n',
            [
                "line 1: expected path and label, found 1 and 'a'",
                "line 2: expected a JSON object, found list",
                "line 3: expected a JSON object, found: ",
                "line 4: expected path and label, found 'x' and True",
            ],
        ),
    ],
)
def test_every_bad_line_is_named(tmp_path, name, text, messages):
    with pytest.raises(DataError) as caught:
        open_source(write(tmp_path / name, text))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"{tmp_path / name}: {message}")


def test_metadata_that_cannot_be_stored_is_in_the_ledger(tmp_path, source, options):
    extra = [{"n": 10**30}, {"t": "\ud800"}, {"x": "é" * 400_000}]
    paths = sorted(source.rglob("*.jpg"))
    rows = [
        {"path": str(p), "label": "a", **more} for p, more in zip(paths, [*extra, *[{}] * 13], strict=True)
    ]
    lines = "".join(json.dumps(row, ensure_ascii="t" in row) + "\n" for row in rows)
    # A path's hash says what goes to val, and temporary folders have other names in every run: there is none.
    options = dataclasses.replace(options, val_per_class=0)
    pack(write(tmp_path / "l.jsonl", lines), tmp_path / "set", options, workers=1)
    ledger = list(map(json.loads, (tmp_path / "set" / "bad.jsonl").read_text().splitlines()))
    assert [entry["kind"] for entry in ledger] == ["bad-metadata"] * 2
    with pytest.raises(DataError, match="line 1: expected text, found half a character"):
        open_source(write(tmp_path / "l.jsonl", r'{"path": "\ud800.jpg", "label": "a"}'))


def test_many_problems_are_shown_up_to_a_limit(tmp_path):
    with pytest.raises(DataError) as caught:
        open_source(write(tmp_path / "l.csv", "path,label\n" + "x\n" * 50))
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("and 30 more problems")


def test_files_that_are_not_there_are_in_the_ledger(tmp_path, source, options):
    text = "path,label\nnowhere.jpg,dog\n" + "".join(f"{p},dog\n" for p in source.rglob("*.jpg"))
    assert pack(write(tmp_path / "l.csv", text), tmp_path / "set", options, workers=1).bad == 1


def test_rows_of_split_val_are_the_validation_part(tmp_path):
    text = "path,label,split\n1.jpg,dog,train\n2.jpg,cat,val\n3.jpg,dog,val\n4.jpg,dog,test\n"
    listing = open_source(write(tmp_path / "list.csv", text))
    assert rows(listing) == {"dog": ("1.jpg", "4.jpg")}
    assert {folder.name: tuple(folder.files) for folder in listing.validation} == {
        "cat": ("2.jpg",),
        "dog": ("3.jpg",),
    }
    assert json.loads(listing.folders[0].metadata[1]) == {"split": "test"}
    with pytest.raises(DataError, match="expected rows of path and label, found those of split val alone"):
        open_source(write(tmp_path / "val.csv", "path,label,split\n1.jpg,dog,val\n"))
    indexed = open_source(write(tmp_path / "n.csv", "path,label,split\n1.jpg,0,train\n2.jpg,3,val\n"))
    assert indexed.class_names == ("0", "1", "2", "3")


def test_a_line_of_many_megabytes_is_read_past_and_named(tmp_path):
    line = json.dumps({"path": "1.jpg", "label": "dog", "title": "x" * 10_000_000})
    text = f'{line}\n{{"path": "2.jpg", "label": "dog"}}\n{line}'
    with pytest.raises(DataError) as raised:
        open_source(write(tmp_path / "list.jsonl", text))
    assert str(raised.value).count("expected at most 1048576 bytes, found more") == 2
    assert "line 1: " in str(raised.value)
    assert "line 3: " in str(raised.value)


def rows_with_a_stray_quote(at, num=1000):
    rows = [f"{i}.jpg,dog,seen on a walk" for i in range(num)]
    for i in at:
        rows[i] = f'{i}.jpg,dog,"seen on a walk'
    return "path,label,title\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize("at", [(10,), (10, 500), (10, 11, 12), (999,)])
def test_a_stray_quote_costs_the_row_that_it_is_in_and_no_other(at):
    problems: list[str] = []
    lines = enumerate(rows_with_a_stray_quote(at).splitlines(keepends=True), 1)
    found = list(csv_rows(lines, "l.csv", problems))
    assert [line for line, *_ in found] == [i + 2 for i in range(1000) if i not in at]
    assert all(path == f"{line - 2}.jpg" for line, path, *_ in found)
    assert [problem.split(": ")[1] for problem in problems] == [f"line {i + 2}" for i in at]


def test_a_quote_that_never_ends_is_read_past_without_holding_the_file():
    rows = "".join(f"{i}.jpg,dog\n" for i in range(200_000))
    problems: list[str] = []
    lines = enumerate(f'path,label\n"a.jpg,dog\n{rows}'.splitlines(keepends=True), 1)
    assert sum(1 for _ in csv_rows(lines, "l.csv", problems)) == 200_000
    assert len(problems) == 1
    assert "line 2: inside a quote up to line " in problems[0]
    cells = "".join(f'{i}","' + "x" * 60_000 + "\n" for i in range(40))
    lines = enumerate(f'path,label\n"{cells}'.splitlines(keepends=True), 1)
    problems.clear()
    assert list(csv_rows(lines, "l.csv", problems)) == []
    assert "a row of more than 1048576 characters" in problems[0]


def test_a_quoted_cell_may_go_on_over_several_lines():
    problems: list[str] = []
    text = 'path,label,title\n1.jpg,dog,"a dog,\nand ""another"" one\n\nof them"\n2.jpg,cat,\n'
    found = list(csv_rows(enumerate(text.splitlines(keepends=True), 1), "l.csv", problems))
    assert found == [
        (5, "1.jpg", "dog", {"title": 'a dog,\nand "another" one\n\nof them'}),
        (6, "2.jpg", "cat", {"title": ""}),
    ]
    assert not problems
