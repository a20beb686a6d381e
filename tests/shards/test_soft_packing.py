"""Lists with tags and weights, packed."""

import csv
import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from packed_files import fields_by_path
from tag_lists import VOCABULARY, unresized, write_rows

from softshard.shards import Manifest, PackOptions, UsageError, pack
from softshard.shards.cli import main
from softshard.shards.pack_soft import load_how, soft_info
from softshard.shards.soft_labels import SoftLabelInfo
from softshard.shards.stored_vocabulary import Vocabulary, load_vocabulary

NAN = float("nan")


def test_packing_turns_names_into_ids(web, tmp_path):
    file, rows = web
    options = unresized(vocabulary=VOCABULARY, weights={"by": "wup"})
    summary = pack(file, tmp_path / "dst", options, workers=1)
    dataset = tmp_path / "dst" / "train"
    manifest = Manifest.load(dataset)
    assert manifest.soft_labels == SoftLabelInfo(4, VOCABULARY.sha256, {"by": "wup"})
    assert load_vocabulary(dataset, VOCABULARY.sha256) == VOCABULARY
    found = fields_by_path(dataset)
    for row in rows:
        meta = found[row["path"]]
        assert meta["tags"] == sorted(
            {VOCABULARY.tags.index(tag) for tag in row.get("tags", ()) if tag in VOCABULARY.tags}
        )
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
    pack(file, tmp_path / "dst", unresized(), workers=1)
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
    summary = pack(file, tmp_path / "dst", unresized(vocabulary=VOCABULARY, weights={}), workers=1)
    (line,) = (tmp_path / "dst" / "bad.jsonl").read_text().splitlines()
    assert (json.loads(line)["kind"], json.loads(line)["path"]) == (kind, rows[4]["path"])
    assert summary.packed == 9


def test_a_csv_gives_the_same_tags_and_weights_as_json_lines(web, tmp_path):
    file, rows = web
    options = unresized(vocabulary=VOCABULARY, weights={})
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
    pack(file, tmp_path / "dst", unresized(vocabulary=VOCABULARY), workers=1)
    other = Vocabulary(VOCABULARY.tags[:3], (1, 1, 1))
    with pytest.raises(UsageError, match="vocabulary was made in another way"):
        pack(file, tmp_path / "dst", unresized(vocabulary=other), workers=1)
    with pytest.raises(UsageError, match=r"vocabulary was given, is not\. Give the same again"):
        pack(file, tmp_path / "dst", unresized(), workers=1)


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
    assert "1 image without weights" in text
    wanted = SoftLabelInfo(4, VOCABULARY.sha256, {"by": "lin"}, tags={"tagger": "wordnet"})
    assert Manifest.load(tmp_path / "dst" / "train").soft_labels == wanted
    assert main(["stats", str(tmp_path / "dst" / "train"), "--html", str(tmp_path / "stats.html")]) == 0
    text = capsys.readouterr().out
    assert f"  tags            vocabulary of 4, {VOCABULARY.sha256[:12]}; tagger wordnet\n" in text
    assert "  class weights   by lin\n" in text
    assert "Tags: vocabulary of 4" in (tmp_path / "stats.html").read_text()
