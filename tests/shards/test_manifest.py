import json
import shutil

import numpy as np
import pytest

from softshard.shards import DataError, LabelTree, Manifest
from softshard.shards.manifest import load_sidecar, load_tree
from softshard.shards.schema import FORMAT_VERSION


@pytest.fixture
def content(packed_once):
    """The parsed manifest, to damage."""
    return json.loads((packed_once / "train" / "manifest.json").read_bytes())


def test_a_manifest_reads_back(packed_once, tmp_path):
    manifest = Manifest.load(packed_once / "train")
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    for name in ("manifest.json", "_info.json"):
        assert (tmp_path / name).read_bytes() == (packed_once / "train" / name).read_bytes()


def test_a_manifest_says_what_was_packed(packed_once, table_tree):
    manifest = Manifest.load(packed_once / "train")
    assert manifest.version == FORMAT_VERSION
    assert (manifest.num_samples, len(manifest.shards)) == (13, 4)
    assert manifest.components == ("jpg", "cls", "hier.npy", "lmap", "msgpack")
    assert manifest.class_names == table_tree.classes
    assert manifest.tree_sha256 == table_tree.fingerprint
    assert manifest.num_bytes == sum(path.stat().st_size for path in (packed_once / "train").glob("*.tar"))


def test_a_folder_may_be_called_what_fsspec_takes_for_a_chain_of_urls(packed_once, tmp_path):
    shutil.copytree(packed_once / "train", tmp_path / "a::b")
    assert Manifest.load(tmp_path / "a::b") == Manifest.load(packed_once / "train")


def test_a_folder_below_one_s_home_is_found_by_all_that_read_it(packed_once, monkeypatch):
    monkeypatch.setenv("HOME", str(packed_once))
    manifest = Manifest.load("~/train")
    assert len(load_sidecar("~/train", manifest)) == manifest.num_samples


def test_a_manifest_reads_from_a_url(packed_once):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in (packed_once / "train").glob("*.*"):
        memory.pipe_file(f"/bucket/train/{path.name}", path.read_bytes())
    manifest = Manifest.load("memory://bucket/train")
    assert manifest == Manifest.load(packed_once / "train")
    assert (
        load_sidecar("memory://bucket/train", manifest).tolist()
        == load_sidecar(packed_once / "train", manifest).tolist()
    )
    tree = load_tree("memory://bucket/train", manifest)
    assert tree is not None
    assert tree.fingerprint == manifest.tree_sha256


def test_timm_s_info_lists_the_shards(packed_once):
    info = json.loads((packed_once / "train" / "_info.json").read_bytes())
    shards = Manifest.load(packed_once / "train").shards
    assert info["splits"]["train"] == {
        "name": "train",
        "num_samples": 13,
        "filenames": [shard.name for shard in shards],
        "shard_lengths": [shard.samples for shard in shards],
    }


def test_the_fingerprint_is_of_what_a_reader_gets(content):
    manifest = Manifest.from_json(content)
    same = Manifest.from_json({**content, "name": "other", "recipe": {}})
    assert same.fingerprint == manifest.fingerprint
    content["shards"][0]["sha256"] = "0" * 64
    assert Manifest.from_json(content).fingerprint != manifest.fingerprint


# ---- Versions


def test_a_newer_major_version_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "softshard", "version": [2, 0]}))
    with pytest.raises(DataError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/manifest.json: expected version 1.x, found 2.0; it was written by a newer "
        "softshard. Run: pip install -U softshard"
    )


def test_a_newer_minor_version_with_unknown_fields_is_read(content):
    content["version"] = [FORMAT_VERSION[0], FORMAT_VERSION[1] + 1]
    content["colour"] = "green"
    content["shards"][0]["colour"] = "green"
    content["label_maps"]["colour"] = "green"
    assert Manifest.from_json(content).num_samples == 13


# ---- Damage


def put(*path):
    """A function that sets a field, given as keys and at last the value."""
    *keys, last, value = path

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", "other"), "expected a softshard manifest, found something else"),
        (put("version", [1]), r"expected a version \[major, minor\], found \[1\]"),
        (put("version", "1.0"), r"expected a version \[major, minor\], found '1.0'"),
        (put("version", [1, -1]), r"expected a version \[major, minor\], found \[1, -1\]"),
        (put("version", [True, 0]), r"expected a version \[major, minor\], found \[True, 0\]"),
        (put("name", None), "expected a name"),
        (put("num_samples", 14), "expected 13 samples in all, found 14"),
        (put("components", "jpg"), "expected a list of components"),
        (put("components", ["jpg", 1]), "expected a list of components"),
        (put("components", ["jpg", "msgpack"]), "expected component 'cls', found none"),
        (put("classes", None), "expected a map 'classes'"),
        (put("classes", "names", []), "expected a list of class names"),
        (put("classes", "names", 0, 1), "expected a list of class names"),
        (put("classes", "names", 0, "wolf"), "expected class list fingerprint [0-9a-f]{64}, found [0-9a-f]{64}; the list"),
        (put("classes", "sha256", "0" * 64), "expected class list fingerprint"),
        (put("classes", "names", 0, "\ud800"), "expected class names that are text, found 'utf-8' codec can't encode"),
        (put("tree", "sha256", None), "expected the tree's SHA-256 and number of levels"),
        (put("tree", "num_levels", "2"), "expected the tree's SHA-256 and number of levels"),
        (put("tree", []), "expected the tree's SHA-256 and number of levels"),
        (put("label_maps", "top", 0), "expected the label maps' geometry and teacher"),
        (put("label_maps", "teacher", None), "expected the label maps' geometry and teacher"),
        (put("label_maps", 3), "expected the label maps' geometry and teacher"),
        (put("recipe", None), "expected a map 'recipe'"),
        (put("pixel_stack", []), "expected a map 'pixel_stack'"),
        (put("sidecar", None), "expected a map 'sidecar'"),
        (put("sidecar", "sha256", "x"), "expected the sidecar's SHA-256"),
        (put("shards", None), "expected a list of shards"),
        (put("shards", []), "expected at least one shard"),
        (put("shards", 1, "text"), "shard 1: expected name, samples, bytes and SHA-256 of tar and index, found 'text'"),
        (put("shards", 1, "samples", 0), "shard 1: expected name, samples, bytes"),
        (put("shards", 1, "samples", True), "shard 1: expected name, samples, bytes"),
        (put("shards", 1, "bytes", -5), "shard 1: expected name, samples, bytes"),
        (put("shards", 1, "sha256", "0" * 63), "shard 1: expected name, samples, bytes"),
        (put("shards", 1, "index_sha256", "G" * 64), "shard 1: expected name, samples, bytes"),
        (put("shards", 1, "name", "../x.tar"), "shard '../x.tar': not a tar's name"),
        (put("shards", 1, "name", "a\\x.tar"), "not a tar's name"),
        (put("shards", 1, "name", "x.zip"), "shard 'x.zip': not a tar's name"),
        (put("shards", 1, "name", "train-000000.tar"), "shard 'train-000000.tar': listed twice"),
    ],
)  # fmt: skip
def test_every_damaged_field_is_reported(content, change, message):
    change(content)
    with pytest.raises(DataError, match=f"^m.json: .*{message}"):
        Manifest.from_json(content, "m.json")


def test_two_problems_are_reported_at_once(content):
    content["name"], content["num_samples"] = 5, 1
    with pytest.raises(DataError) as caught:
        Manifest.from_json(content, "m.json")
    assert str(caught.value) == "m.json: expected a name; expected 13 samples in all, found 1"


@pytest.mark.parametrize(
    "field", ["name", "components", "classes", "recipe", "pixel_stack", "sidecar", "shards", "num_samples"]
)
def test_every_missing_field_is_reported(content, field):
    del content[field]
    with pytest.raises(DataError, match="expected"):
        Manifest.from_json(content)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(DataError, match=r"manifest\.json: expected"):
        Manifest.load(tmp_path)


def test_a_folder_without_manifest_says_that_packing_may_not_have_finished(tmp_path):
    with pytest.raises(DataError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value).startswith(
        f"{tmp_path}: expected a data set, found no manifest.json; the path is another"
    )
    assert "Run `softshard pack` again" in str(caught.value)


def test_what_is_no_data_set_is_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"found no manifest\.json; there is no such folder"):
        Manifest.load(tmp_path / "away")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.JPEG").write_bytes(b"")
    for images in (tmp_path / "images", tmp_path / "images" / "cat", f"file://{tmp_path}/images"):
        with pytest.raises(DataError, match=r"these are images, .* Run: softshard pack /.* DST"):
            Manifest.load(images)


def test_the_folder_above_two_data_sets_names_them(packed_once):
    with pytest.raises(
        DataError, match=f"give one of the data sets in it: {packed_once}/train, {packed_once}/val"
    ):
        Manifest.load(packed_once)


def test_a_shard_given_as_a_data_set_is_refused(packed_once):
    with pytest.raises(DataError, match="expected a data set, found no manifest"):
        Manifest.load(packed_once / "train" / "train-000000.tar")


def test_a_manifest_that_is_too_long_is_refused(packed_once, monkeypatch):
    monkeypatch.setattr("softshard.shards.manifest.MAX_MANIFEST_BYTES", 100)
    with pytest.raises(DataError, match="expected at most 100 bytes, found more"):
        Manifest.load(packed_once / "train")


# ---- The files beside it


def test_the_sidecar_holds_every_sample_s_class_and_is_mapped(packed_once):
    classes = load_sidecar(packed_once / "train", Manifest.load(packed_once / "train"))
    assert isinstance(classes, np.memmap)
    assert np.bincount(classes).tolist() == [4, 6, 3]


def save(array, **options):
    return lambda path: np.save(path, array, **options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "expected every sample's class as int32, found"),
        (lambda path: path.write_bytes(b""), "expected every sample's class as int32, found"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "expected every sample's class as int32, found"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(100)), "expected every sample's class as int32, found"),
        (save(np.array([None] * 13, object), allow_pickle=True), "expected every sample's class as int32, found"),
        (save(np.zeros(12, np.int32)), r"expected int32 \[13\], found int32 \[12\]; it belongs to another data set"),
        (save(np.zeros(13, np.int64)), r"expected int32 \[13\], found int64 \[13\]"),
        (save(np.full(13, 5, np.int32)), "expected classes from 0 to 4, found 5 to 5; it is damaged"),
        (save(np.full(13, -1, np.int32)), "expected classes from 0 to 4, found -1 to -1"),
    ],
)  # fmt: skip
def test_a_damaged_sidecar_is_refused(packed, damage, message):
    damage(packed / "train" / "classes.npy")
    with pytest.raises(DataError, match=message):
        load_sidecar(packed / "train", Manifest.load(packed / "train"))


def test_a_data_set_without_tree_has_none(content, tmp_path):
    content["tree"] = None
    content["components"].remove("hier.npy")
    assert load_tree(tmp_path, Manifest.from_json(content)) is None


def test_another_tree_is_refused_with_both_fingerprints(packed, table_tree):
    manifest = Manifest.load(packed / "train")
    other = LabelTree.from_table(["bird", "dog", "oak"], [("bird", "a"), ("dog", "a"), ("oak", "a")])
    other.save(packed / "train" / "tree.json")
    with pytest.raises(DataError) as caught:
        load_tree(packed / "train", manifest)
    assert table_tree.fingerprint[:12] in str(caught.value)
    assert other.fingerprint[:12] in str(caught.value)


def test_a_copied_data_set_is_the_same_data_set(packed_once, tmp_path):
    copy = shutil.copytree(packed_once / "train", tmp_path / "copy")
    assert Manifest.load(copy).fingerprint == Manifest.load(packed_once / "train").fingerprint
