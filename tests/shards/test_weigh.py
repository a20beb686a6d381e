"""Weights of classes: from similarities to weights, and the list that comes out."""

import hashlib
import json
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tag_lists import read_rows, write_rows

from softshard.shards import DataError, ImageRecipe, Manifest, PackOptions, UsageError, pack
from softshard.shards import weigh as weigh_module
from softshard.shards.classes import load_class_list
from softshard.shards.cli import main
from softshard.shards.json_lines import read_json_lines
from softshard.shards.pack_soft import load_how
from softshard.shards.similarities import Measures, Similarities
from softshard.shards.tags_build import TagOptions, build_tags
from softshard.shards.weigh import WeighOptions, weigh_list, weights_of
from softshard.shards.weigh_page import FELL_BACK, neighbours

DOG, CAT, OAK = "n02084071", "n02121620", "n12268246"
CLASSES = (DOG, CAT, OAK)
WUP = Measures({"wup": 1.0})


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.floats(0.1, 4),
    st.floats(0, 1),
    st.none() | st.integers(1, 5),
    st.sampled_from(["none", "max", "sum"]),
)
def test_weights_are_what_a_plain_loop_says(scores, temperature, threshold, top, normalise):
    classes, weights = weights_of(np.array(scores), WeighOptions(temperature, threshold, top, normalise))
    values = [np.float64(score) ** (1 / temperature) for score in scores]
    wanted = [i for i, value in enumerate(values) if value > 0 and value >= threshold]
    wanted = sorted(wanted, key=lambda i: (-values[i], i))[:top]
    assert classes.tolist() == wanted
    scale = {
        "none": 1.0,
        "max": max([values[i] for i in wanted], default=1),
        "sum": sum(values[i] for i in wanted),
    }
    np.testing.assert_allclose(weights, [values[i] / scale[normalise] for i in wanted], rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": -1},
        {"threshold": 2},
        {"top": 0},
        {"normalise": "l2"},
        {"max_bad": 2},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError, match=f"{next(iter(options))}: expected"):
        WeighOptions(**options)


ROWS = [
    {"path": "a.jpg", "label": DOG, "title": "a dog", "other": [1]},
    {"path": "b.jpg", "label": 1, "tags": ["oak", "tree"]},
    {"path": "c.jpg", "label": "2", "description": ""},
]


def test_a_list_gets_weights_and_keeps_its_columns(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    options = WeighOptions(top=2, normalise="max")
    summary = weigh_list(source, tmp_path / "out.jsonl", CLASSES, WUP, options)
    assert (summary.read, summary.written, summary.bad, summary.mean_classes) == (3, 3, 0, 2)
    out = read_rows(tmp_path / "out.jsonl")
    for row, wanted in zip(out, ROWS, strict=True):
        assert {name: row[name] for name in wanted} == wanted
    assert out[0]["weights"] == {DOG: 1.0, CAT: pytest.approx(0.857143)}
    assert out[1]["weights"] == {CAT: 1.0, DOG: pytest.approx(0.857143)}
    assert next(iter(out[2]["weights"])) == OAK
    how = load_how(tmp_path / "out.jsonl", "weights")
    assert how["by"] == {"wup": 1.0}
    assert how["top"] == 2
    assert (tmp_path / "out.bad.jsonl").read_bytes() == b""


def test_the_same_call_gives_the_same_bytes(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    measures = Measures({"wup": 0.5, "jcn": 0.2, "text": 0.3}, information_content="counts")
    for name in ("one", "two"):
        weigh_list(source, tmp_path / f"{name}.jsonl", CLASSES, measures)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_small_weights_keep_their_digits(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"path": "1.jpg", "label": DOG}])
    measures = Measures({"wup": 1.0})
    weigh_list(source, tmp_path / "out.jsonl", CLASSES, measures, WeighOptions(temperature=0.02))
    (row,) = read_rows(tmp_path / "out.jsonl")
    wanted = Similarities(CLASSES, measures).scores(0) ** 50
    assert 0 < wanted.min() < 5e-7
    for name, value in zip(CLASSES, wanted, strict=True):
        assert row["weights"][name] == pytest.approx(value, rel=1e-6)
        assert row["weights"][name] == float(f"{value:.7g}")


def test_twenty_classes_of_an_image_are_kept_unless_all_are_asked_for(tmp_path, capsys):
    names = load_class_list("imagenet-1k")[:30]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    source = write_rows(tmp_path / "in.jsonl", [{"path": "1.jpg", "label": names[0]}])
    out = tmp_path / "out.jsonl"
    call = ["tags", "weigh", str(source), "-o", str(out), "--classes", str(tmp_path / "classes.txt")]
    for more, num in (([], 20), (["--top", "0"], 30), (["--top", "all"], 30), (["--top", "3"], 3)):
        assert main([*call, *more]) == 0
        assert len(read_rows(out)[0]["weights"]) == num
    assert load_how(out, "weights")["top"] == 3
    weigh_list(source, out, names, WUP)
    assert len(read_rows(out)[0]["weights"]) == 20
    assert main([*call, "--top", "-1"]) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*call, "--top", "few"])
    assert "--top: expected a number of classes, or all, found 'few'" in capsys.readouterr().err


def test_the_record_names_the_definitions_that_were_read(tmp_path):
    file = tmp_path / "said.tsv"
    file.write_text(f"{DOG}\ta dog\n")
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    weigh_list(source, tmp_path / "out.jsonl", CLASSES, Measures({"text": 1.0}, definitions=str(file)))
    wanted = {"name": "said.tsv", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert load_how(tmp_path / "out.jsonl", "weights")["definitions"] == wanted
    timms = Similarities(CLASSES, Measures({"text": 1.0})).to_json()["definitions"]
    assert timms["name"] == "imagenet_synset_to_definition.txt"
    assert len(timms["sha256"]) == 64
    assert "definitions" not in Similarities(("a", "b"), Measures({"text": 1.0})).to_json()
    assert "definitions" not in Similarities(CLASSES, WUP).to_json()


def test_how_tags_were_made_goes_with_the_list_that_gets_weights(tmp_path):
    rows = [{"path": f"{i}.jpg", "label": DOG, "title": "a dog in the grass"} for i in range(2)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    build_tags(source, tmp_path / "tags.jsonl", TagOptions(max_share=1.0), workers=1)
    how = load_how(tmp_path / "tags.jsonl", "tags")
    assert (how["source"], how["tagger"], how["min_images"], how["images"]) == ("in.jsonl", "wordnet", 2, 2)
    vocabulary = (tmp_path / "tags.vocabulary.tsv").read_bytes()
    assert how["vocabulary_sha256"] == hashlib.sha256(vocabulary).hexdigest()
    out = tmp_path / "out.jsonl"
    weigh_list(tmp_path / "tags.jsonl", out, CLASSES, WUP)
    assert load_how(out, "tags") == how
    weigh_list(source, out, CLASSES, WUP)  # whose tags nobody made
    assert load_how(out, "tags") == {}


def test_the_old_list_goes_before_what_is_beside_it_changes(tmp_path, monkeypatch):
    source = write_rows(tmp_path / "in.jsonl", [{"path": "1.jpg", "label": DOG}])
    out = write_rows(tmp_path / "out.jsonl", [{"path": "old.jpg", "label": DOG}])
    monkeypatch.setattr(weigh_module, "save_how", lambda *_: 1 / 0)  # dies there
    with pytest.raises(ZeroDivisionError):
        weigh_list(source, out, CLASSES, WUP)
    assert not out.exists()


def test_counts_leave_out_the_validation_part(tmp_path):
    measures = Measures({"lin": 1.0}, information_content="counts")
    validation = [{"path": "v.jpg", "label": OAK, "split": "val"}] * 50
    weigh_list(write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl", CLASSES, measures)
    weigh_list(
        write_rows(tmp_path / "both.jsonl", ROWS + validation), tmp_path / "more.jsonl", CLASSES, measures
    )
    assert read_rows(tmp_path / "more.jsonl")[: len(ROWS)] == read_rows(tmp_path / "out.jsonl")


def test_counts_are_those_of_the_lists_labels(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [*ROWS, *ROWS[:1] * 5, {"label": "nobody"}])
    measures = Measures({"lin": 1.0}, information_content="counts")
    weigh_list(source, tmp_path / "out.jsonl", CLASSES, measures)
    wanted = Similarities(CLASSES, measures, counts=np.array([6, 1, 1])).scores(0)
    found = read_rows(tmp_path / "out.jsonl")[0]["weights"]
    assert found[DOG] == 1
    for name, score in zip(CLASSES, wanted, strict=True):
        assert found.get(name, 0) == pytest.approx(score, abs=1e-6)


def test_an_image_whose_text_names_no_class_gets_its_label(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS[2:])
    summary = weigh_list(source, tmp_path / "out.jsonl", CLASSES, Measures({"text": 1.0}))
    assert summary.label_only == 1
    assert read_rows(tmp_path / "out.jsonl")[0]["weights"] == {OAK: 1.0}


def test_bad_lines_are_recorded_and_a_byte_order_mark_and_crlf_are_none(tmp_path):
    good = [json.dumps(row).encode() for row in ROWS]
    lines = [
        b"\xef\xbb\xbf" + good[0] + b"\r",
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"label": "wolf"}',
        b'{"path": "x"}',
        *good[1:],
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    summary = weigh_list(tmp_path / "in.jsonl", tmp_path / "out.jsonl", CLASSES, WUP)
    assert (summary.read, summary.written, summary.bad) == (8, 3, 5)
    bad = read_rows(tmp_path / "out.bad.jsonl")
    assert [line["line"] for line in bad] == [3, 4, 5, 6, 7]
    reasons = " ".join(line["reason"] for line in bad)
    for says in ("a JSON object, found", "found byte 0xff", "found list", "found 'wolf'", "found None"):
        assert says in reasons


def test_too_many_bad_lines_write_nothing(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [*ROWS, {"label": "wolf"}])
    with pytest.raises(DataError, match=r"line 4: expected a label of the 3 classes, found 'wolf'"):
        weigh_list(source, tmp_path / "out.jsonl", CLASSES, WUP, WeighOptions(max_bad=0))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl"]
    with pytest.raises(DataError, match=r"at most 0 bad lines of 1, found 1; .* Is it of another class list"):
        weigh_list(write_rows(source, [{"label": "wolf"}]), tmp_path / "out.jsonl", CLASSES, WUP)
    with pytest.raises(DataError, match="expected lines with a label, found none"):
        weigh_list(write_rows(source, []), tmp_path / "out.jsonl", CLASSES, WUP)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # stands for the disk's
    try:
        with pytest.raises(OSError, match=r"File too large: .*/out\.jsonl\.\w+\.part"):
            weigh_list(source, tmp_path / "out.jsonl", CLASSES, WUP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_source_is_not_written_over(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(UsageError, match="expected another file than the source"):
        weigh_list(source, source, CLASSES, WUP)
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(
        UsageError, match=r"expected a list \(.csv, .tsv, .jsonl, .ndjson\), found another kind"
    ):
        weigh_list(tmp_path / "in.txt", tmp_path / "out.jsonl", CLASSES, WUP)


def test_a_table_gets_the_weights_of_json_lines_and_its_paths_lead_to_the_images(tmp_path):
    rows = [{"path": f"{i}.jpg", "label": str(row["label"]), "title": "my cat"} for i, row in enumerate(ROWS)]
    (tmp_path / "new").mkdir()
    both = Measures({"wup": 0.5, "text": 0.5})
    weigh_list(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "beside.jsonl", CLASSES, both)
    table = "path,label,title\n" + "".join(f"{row['path']},{row['label']},my cat\n" for row in rows)
    (tmp_path / "in.csv").write_text(table + "x.jpg,too,many,cells\n9.jpg,wolf,\n")
    summary = weigh_list(tmp_path / "in.csv", tmp_path / "new" / "out.jsonl", CLASSES, both)
    assert (summary.read, summary.bad) == (len(rows) + 2, 2)
    wanted = [{**row, "path": f"../{row['path']}"} for row in read_rows(tmp_path / "beside.jsonl")]
    assert read_rows(tmp_path / "new" / "out.jsonl") == wanted
    assert [(bad["line"], bad["reason"][:28]) for bad in read_rows(tmp_path / "new" / "out.bad.jsonl")] == [
        (len(rows) + 2, "expected 3 cells as in the h"),
        (len(rows) + 3, "expected a label of the 3 cl"),
    ]


def test_a_caption_of_megabytes_is_a_line_like_any_other(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"label": DOG, "description": "cat " * 2_500_000}])
    weigh_list(source, tmp_path / "out.jsonl", CLASSES, Measures({"text": 1.0}))
    assert CAT in read_rows(tmp_path / "out.jsonl")[0]["weights"]


def test_a_line_that_is_too_long_is_skipped_whole(tmp_path):
    (tmp_path / "long.jsonl").write_bytes(b"x" * 1000 + b'\n{"a": 1}\n')
    with open(tmp_path / "long.jsonl", "rb") as file:
        long, short = read_json_lines(file, 100)
    assert long.problem == "expected at most 100 bytes, found 1,001"
    assert (short.number, short.offset, short.row) == (2, 1001, {"a": 1})


def test_the_command_weighs_and_packing_takes_what_it_wrote(tmp_path, source_maker, capsys):
    source_maker(tmp_path / "web", {"dog": 2, "cat": 2})
    rows = [{"path": f"{name}/{name}_{i}.jpg", "label": name} for name in ("dog", "cat") for i in range(2)]
    write_rows(tmp_path / "web" / "in.jsonl", rows)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    out = tmp_path / "web" / "out.jsonl"
    command = ["tags", "weigh", out.with_name("in.jsonl"), "-o", out, "--classes", tmp_path / "classes.txt"]
    assert main([*map(str, command), "--by", "wup", "--temperature", "0.5"]) == 0
    assert "read 4 = written 4 + bad 0" in capsys.readouterr().out
    options = PackOptions(image=ImageRecipe(resize="none"), shard_samples=4, weights=load_how(out, "weights"))
    pack(out, tmp_path / "dst", options, workers=1)
    assert Manifest.load(tmp_path / "dst" / "train").soft_labels.weights["temperature"] == 0.5


def test_show_prints_and_draws_the_nearest_concepts(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    command = ["tags", "show", DOG, "--classes", str(tmp_path / "classes.txt"), "--by", "wup=1,path=1"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert f"1.0000  {DOG} dog  wup 1.000  path 1.000" in text
    assert "wup 0.857  path 0.200" in text
    assert main([*command, "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert CAT in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert main(["tags", "show", "wolf", *command[3:]]) == 2


def test_show_says_where_an_image_gets_its_label_alone(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    command = ["tags", "show", DOG, "--classes", str(tmp_path / "classes.txt"), "--by=text", "--text=zzz"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.splitlines() == [f"{DOG}: {FELL_BACK}", f"  1.0000  {DOG} dog  text 0.000"]
    assert main([*command, "-o", str(tmp_path / "page.html")]) == 0
    assert FELL_BACK.capitalize() in (tmp_path / "page.html").read_text()


def test_neighbours_are_those_that_an_image_gets():
    similarities = Similarities(CLASSES, WUP)
    found = neighbours(similarities, DOG, WeighOptions(top=2))
    assert [each.name for each in found] == [DOG, CAT]
    assert found[1].weight == pytest.approx(found[1].measures["wup"], rel=1e-6)
