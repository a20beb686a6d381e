"""WebVision's own layout, made here in small, in both versions; and its real info folder."""

import json
import shutil
from dataclasses import replace

import msgpack
import pytest
from packed_files import samples

from softshard.shards import Manifest, pack, tags_build, tags_work
from softshard.shards.errors import DataError, UsageError
from softshard.shards.sources import open_source
from softshard.shards.storage import LocalStorage
from softshard.shards.tags_build import TagOptions, build_tags
from softshard.shards.tags_source import open_text_source
from softshard.shards.webvision_info import is_webvision, open_webvision

SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn02123045 tabby, tabby cat"
TEXTS = {
    "google/q0001": [{"title": "a tench"}, {"title": "big fish", "description": "in the sea", "id": 7}],
    "google/q0003": [{}, {"title": "", "description": None}],
    "flickr/q0002": [{"title": "gold fish", "tags": ["big cat", "grass"], "description": "x"}],
}
LABELS = {"google/q0001": 0, "flickr/q0002": 1, "google/q0003": 2}


@pytest.fixture
def webvision(tmp_path, jpeg):
    """Two Google queries and one of Flickr's; texts in `google_json`, validation images; the last lines end without a
    newline, as the real ones do.
    """

    def make(images="", meta="", json_suffix="_json", name="webvision"):
        root = tmp_path / name
        info = root / "info"
        info.mkdir(parents=True)
        (info / "synsets.txt").write_text(SYNSETS)
        (info / "queries_synsets_map.txt").write_text("1 1\n2 2\n3 3")
        for part in ("google", "flickr"):
            files, metas = [], []
            for query, rows in TEXTS.items():
                if not query.startswith(part):
                    continue
                folder = root / images / query
                folder.mkdir(parents=True)
                for i in range(len(rows)):
                    (folder / f"img {i}.jpg").write_bytes(jpeg(30, 40, seed=i))
                    files.append(f"{query}/img {i}.jpg {LABELS[query]}")
                    metas.append(f"{query}.json {i + 1}")
                texts = root / meta / f"{part}{json_suffix}"
                texts.mkdir(parents=True, exist_ok=True)
                (texts / f"{query.partition('/')[2]}.json").write_text(json.dumps(rows))
            (info / f"train_filelist_{part}.txt").write_text("\n".join(files))
            (info / f"train_meta_list_{part}.txt").write_text("\n".join(metas) + "\n")
        (root / "val_images_256").mkdir()
        lines = []
        for i in range(3):
            (root / "val_images_256" / f"val{i:06d}.jpg").write_bytes(jpeg(30, 40, seed=i))
            lines.append(f"val{i:06d}.jpg {i}\n")
        (info / "val_filelist.txt").write_text("".join(lines))
        return root

    return make


def metadata(listing):
    return {
        file: json.loads(extra) if extra else {}
        for folder in listing.folders
        for file, extra in zip(folder.files, folder.metadata or [""] * len(folder.files), strict=True)
    }


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"json_suffix": ""},
        {"images": "train_images_256", "meta": "meta", "json_suffix": ""},
        {"meta": "metadata"},
    ],
)
def test_images_classes_and_texts_are_those_of_the_info_folder(webvision, layout):
    listing = open_source(webvision(**layout))
    below = f"{layout['images']}/" if "images" in layout else ""
    assert listing.class_names == ("n01440764", "n01443537", "n02123045")
    assert {folder.name: list(folder.files) for folder in listing.folders} == {
        "n01440764": [f"{below}google/q0001/img 0.jpg", f"{below}google/q0001/img 1.jpg"],
        "n01443537": [f"{below}flickr/q0002/img 0.jpg"],
        "n02123045": [f"{below}google/q0003/img 0.jpg", f"{below}google/q0003/img 1.jpg"],
    }
    assert metadata(listing) == {
        f"{below}google/q0001/img 0.jpg": {"title": "a tench"},
        f"{below}google/q0001/img 1.jpg": {"title": "big fish", "description": "in the sea"},
        f"{below}flickr/q0002/img 0.jpg": TEXTS["flickr/q0002"][0],
        f"{below}google/q0003/img 0.jpg": {},
        f"{below}google/q0003/img 1.jpg": {},
    }
    assert [list(folder.files) for folder in listing.validation] == [
        [f"val_images_256/val{i:06d}.jpg"] for i in range(3)
    ]


def test_it_is_packed_with_its_validation_images_and_texts(webvision, tmp_path, options):
    root = webvision()
    (root / "google" / "q0001" / "img 1.jpg").unlink()
    summary = pack(root, tmp_path / "set", replace(options, val_per_class=0), workers=1)
    assert (summary.read, summary.packed, summary.bad) == (8, 7, 1)
    assert "q0001/img 1.jpg" in (tmp_path / "set" / "bad.jsonl").read_text()
    train = Manifest.load(tmp_path / "set" / "train")
    assert (train.num_samples, train.class_names) == (4, ("n01440764", "n01443537", "n02123045"))
    assert Manifest.load(tmp_path / "set" / "val").num_samples == 3
    texts = {}
    for parts in samples(tmp_path / "set" / "train").values():
        meta = msgpack.unpackb(parts["msgpack"])
        texts[meta["path"]] = (meta.get("metadata"), int(parts["cls"]))
    assert texts["flickr/q0002/img 0.jpg"] == (TEXTS["flickr/q0002"][0], 1)


def damage(root, name, change):
    path = root / "info" / name
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "synsets.txt",
            lambda text: text + "\nn01440764 again",
            "line 4: n01440764 stands on line 1 already",
        ),
        ("synsets.txt", lambda text: text + "\n\nx", "line 4: expected a wnid and names, found ''"),
        ("synsets.txt", lambda _: "", "expected synsets, found none"),
        (
            "queries_synsets_map.txt",
            lambda text: text + "\n4 4",
            "line 4: expected a query from 1 and a synset from 1",
        ),
        ("queries_synsets_map.txt", lambda text: text + "\n0 1", "line 4: expected a query from 1"),
        (
            "queries_synsets_map.txt",
            lambda text: text + "\n3 1",
            "line 4: expected query 3 once, found it again",
        ),
        (
            "queries_synsets_map.txt",
            lambda text: text + "\nx",
            "line 4: expected a query and a synset, found 'x'",
        ),
        (
            "train_filelist_flickr.txt",
            lambda t: t[:-1] + "3",
            "line 1: expected a class from 0 to 2 .*, found 3",
        ),
        (
            "train_filelist_flickr.txt",
            lambda t: t[:-1] + "-1",
            "line 1: expected a path below the folder and a class",
        ),
        (
            "train_filelist_flickr.txt",
            lambda t: t[:-1] + "9" * 5000,
            "line 1: expected a path below the folder and a class",
        ),
        (
            "train_meta_list_flickr.txt",
            lambda t: t.replace(" 1", " " + "9" * 5000),
            "expected a JSON file and a row from 1",
        ),
        (
            "train_filelist_flickr.txt",
            lambda t: "../" + t,
            "line 1: expected a path below the folder and a class",
        ),
        (
            "train_filelist_flickr.txt",
            lambda t: "/" + t,
            "line 1: expected a path below the folder and a class",
        ),
        (
            "train_filelist_google.txt",
            lambda t: t.rpartition("\n")[0],
            "expected a line for every line of .*found 3",
        ),
        ("train_meta_list_google.txt", lambda t: t[:-20], "train_meta_list_google.txt: "),
        (
            "train_meta_list_flickr.txt",
            lambda t: t.replace(" 1", " 0"),
            "expected a JSON file and a row from 1",
        ),
        (
            "val_filelist.txt",
            lambda t: t.replace(" 2", " 3"),
            "val_filelist.txt: line 3: expected a class from 0 to 2",
        ),
        ("train_filelist_flickr.txt", lambda t: f"{t}\n{t}", "expected a line for every line"),
    ],
)
def test_a_bad_line_of_the_info_folder_is_named(webvision, name, change, message):
    root = webvision()
    damage(root, name, change)
    with pytest.raises(DataError, match=message):
        open_source(root)


@pytest.mark.parametrize("queries", ["1 1\n2 2", "1 1\n2 2\n3 1"])
def test_a_query_that_the_map_lacks_or_has_otherwise_is_told_and_the_file_list_counts(webvision, queries):
    root = webvision()
    damage(root, "queries_synsets_map.txt", lambda _: queries)
    with pytest.warns(UserWarning, match="found 1 without or with others: 3; the file lists' classes count"):
        listing = open_source(root)
    assert [len(folder.files) for folder in listing.folders] == [2, 1, 2]


def test_an_image_that_is_listed_twice_is_named(webvision):
    root = webvision()
    for name in ("train_filelist_flickr.txt", "train_meta_list_flickr.txt"):
        damage(root, name, lambda text: f"{text.strip()}\n{text.strip()}\n")
    with pytest.raises(DataError, match=r"'flickr/q0002/img 0.jpg': expected once in class 'n01443537'"):
        open_source(root)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "found no file"),
        (b"[{", "expected a JSON array of the query's images, found: "),
        (b"{}", "expected a JSON array, found dict"),
        (b"[]", "expected at least 1 row, found 0"),
        (b"[7]", "row 1: expected an object, found int"),
        (b'[{"title": "caf\xe9"}]', "expected a JSON array of the query's images, found: "),
    ],
)
def test_texts_that_are_missing_or_damaged_cost_no_image_and_are_told(webvision, tmp_path, content, found):
    root = webvision()
    path = root / "flickr_json" / "q0002.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="1 image without title, description and tags: .*q0002.json"):
        listing = open_source(root)
    assert listing.num_files == 8
    report = build_tags(root, tmp_path / "tags.jsonl", TagOptions(min_images=1, max_share=1.0), workers=1)
    assert (report.images, report.no_text) == (5, 1)
    (bad,) = [json.loads(line) for line in (tmp_path / "tags.bad.jsonl").read_text().splitlines()]
    assert (bad["kind"], bad["path"]) == ("no-text", "flickr/q0002/img 0.jpg")
    assert found in bad["reason"]


def test_folders_that_are_missing_are_told(webvision):
    root = webvision()
    for name in ("google_json", "flickr_json", "val_images_256"):
        shutil.rmtree(root / name)
    with pytest.warns(UserWarning, match="5 images without title") as warned:
        listing = open_source(root)
    assert listing.validation == ()
    assert any("there will be no validation part" in str(warning.message) for warning in warned)
    shutil.rmtree(root / "flickr")
    with pytest.raises(
        DataError, match=r"expected the images of info/train_filelist_flickr.txt in one of flickr, "
    ):
        open_source(root)
    with pytest.raises(UsageError, match=r"expected WebVision's info/synsets.txt"):
        open_webvision(LocalStorage(str(root / "google")))


def test_tags_of_webvision_with_the_words_of_its_synsets_where_there_is_no_text(webvision, tmp_path, options):
    root = webvision()
    report = build_tags(root, tmp_path / "tags.jsonl", TagOptions(min_images=1, max_share=1.0), workers=1)
    written = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    assert (len(written), report.images, report.validation) == (8, 5, 3)
    assert {row["path"] for row in written if row.get("split") == "val"} == {
        f"webvision/val_images_256/val{i:06d}.jpg" for i in range(3)
    }
    rows = {row["path"]: row for row in written if "split" not in row}
    assert {path: row["tags"] for path, row in rows.items()} == {
        "webvision/google/q0001/img 0.jpg": ["tench"],
        "webvision/google/q0001/img 1.jpg": ["big fish", "sea"],
        "webvision/google/q0003/img 0.jpg": ["tabby", "tabby cat"],
        "webvision/google/q0003/img 1.jpg": ["tabby", "tabby cat"],
        "webvision/flickr/q0002/img 0.jpg": ["gold", "fish", "big cat", "grass"],
    }
    assert report.stats.by_source["label"] == 2
    assert (tmp_path / "tags.classes.txt").read_text() == "n01440764\nn01443537\nn02123045\n"
    names = tuple((tmp_path / "tags.classes.txt").read_text().split())
    no_val = replace(options, val_per_class=0)
    summary = pack(tmp_path / "tags.jsonl", tmp_path / "set", no_val, class_names=names, workers=1)
    assert (summary.packed, summary.bad) == (8, 0)
    assert [summary.manifests[name].num_samples for name in ("train", "val")] == [5, 3]


def test_texts_that_are_unpacked_or_mended_after_a_build_that_stopped_are_read(
    webvision, tmp_path, monkeypatch
):
    """What is kept is of the texts that were there, also where neither time nor size of a file tells."""
    for module in (tags_work, tags_build):
        monkeypatch.setattr(module, "BLOCKS_KEPT", 1)
    root, out, options = webvision(), tmp_path / "tags.jsonl", TagOptions(min_images=1, max_share=1.0)
    build_tags(root, out, options, workers=1)
    wanted = out.read_bytes()
    stamp = open_text_source(root).stamp()
    (root / "google_json").rename(tmp_path / "packed")
    assert open_text_source(root).stamp() != stamp
    with pytest.raises(DataError, match="mend them, or raise --max-bad"):
        build_tags(root, out, replace(options, max_bad=0.0), workers=1)
    assert not out.with_name("tags.tags-work").exists()
    (tmp_path / "packed").rename(root / "google_json")
    assert open_text_source(root).stamp() == stamp

    too_rare = replace(options, min_images=9)
    with pytest.raises(DataError, match="expected tags, found none"):
        build_tags(root, out, too_rare, workers=1)
    assert len(list(out.with_name("tags.tags-work").glob("count-*.npz"))) == 3
    file = root / "google_json" / "q0001.json"
    file.write_text(file.read_text().replace("a tench", "a small goldfish"))  # no entry of the folder changes
    build_tags(root, out, options, workers=1)
    assert json.loads(out.read_text().splitlines()[1])["tags"] != json.loads(wanted.splitlines()[1])["tags"]


def test_a_folder_of_classes_called_info_is_no_webvision(source):
    (source / "info").mkdir()
    assert not is_webvision(LocalStorage(str(source)))


@pytest.mark.shared
def test_the_real_info_folder_of_webvision_1(shared_data, tmp_path):
    info = shutil.copytree(shared_data / "webvision1_info", tmp_path / "webvision" / "info")
    (info / "train_filelist_google.txt").write_text("google/q0001/a.jpg 0\n")
    (tmp_path / "webvision" / "google").mkdir()
    webvision = open_webvision(LocalStorage(str(tmp_path / "webvision")))
    assert len(webvision.synsets) == len(set(webvision.synsets)) == 1000
    assert (webvision.synsets[0], webvision.names[0]) == ("n01440764", "tench, Tinca tinca")
    assert set(webvision.queries.values()) == set(range(1000))
    assert (len(webvision.queries), min(webvision.queries), max(webvision.queries)) == (
        1631,
        1,
        1632,
    )  # with gaps
    assert [webvision.queries[query] for query in (1, 2, 3)] == [0, 0, 1]


def test_a_caption_of_ten_megabytes_goes_to_the_ledger_of_pack_and_is_cut_by_tags(
    webvision, tmp_path, options
):
    root = webvision()
    rows = [{"title": "a gold fish", "description": "big cat " * 1_300_000}]
    (root / "flickr_json" / "q0002.json").write_text(json.dumps(rows))
    summary = pack(root, tmp_path / "set", replace(options, val_per_class=0), workers=1)
    assert (summary.packed, summary.bad) == (7, 1)
    assert "expected at most 1048576 bytes of metadata" in (tmp_path / "set" / "bad.jsonl").read_text()
    report = build_tags(root, tmp_path / "tags.jsonl", TagOptions(min_images=1, max_share=1.0), workers=1)
    assert (report.images, report.fields_cut) == (5, 1)
