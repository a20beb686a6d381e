"""Published label maps become `.lmap` files that pack takes; what is corrupt or hostile is refused and listed."""

import io
import json
import pickle
import re
import resource
import shutil
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
from waiting import LONG_S

from softshard.shards import DataError, ImageRecipe, PackOptions, UsageError, decode_label_map, pack
from softshard.shards.cli import main
from softshard.shards.errors import ImageError
from softshard.shards.labelmap_import import ImportOptions, import_label_maps
from softshard.shards.labelmap_published import read_published_map

torch = pytest.importorskip("torch")

SHAPE = (5, 3, 4)  # K, P, Q: not square


def published(seed=0, num_classes=1000, dtype=torch.float32, shape=SHAPE):
    """A tensor [2, K, P, Q] as ReLabel saves it."""
    rng = np.random.default_rng(seed)
    top, rows, columns = shape
    cells = [rng.permutation(num_classes)[:top] for _ in range(rows * columns)]
    ids = np.stack(cells, axis=1).reshape(shape)
    scores = -np.sort(-rng.normal(5, 3, shape), axis=0)
    return torch.from_numpy(np.stack([scores, ids])).to(dtype)


@pytest.fixture
def source(tmp_path):
    """Six maps of two classes."""
    for number in range(6):
        file = tmp_path / "src" / f"n0000000{number % 2}" / f"image_{number}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(published(number), file)
    return tmp_path / "src"


def ledger(folder):
    return [json.loads(line) for line in (folder / "bad.jsonl").read_text().splitlines()]


def test_maps_lie_where_pack_looks_for_them_with_the_same_values(source, tmp_path):
    summary = import_label_maps(source, tmp_path / "maps")
    assert (summary.read, summary.written, summary.kept, summary.bad) == (6, 6, 0, 0)
    assert summary.shape == SHAPE
    for number in range(6):
        name = f"n0000000{number % 2}/image_{number}"
        scores, ids = decode_label_map((tmp_path / "maps" / f"{name}.lmap").read_bytes())
        expected = published(number).numpy()
        np.testing.assert_allclose(scores, expected[0], atol=1e-2)
        np.testing.assert_array_equal(ids, expected[1])
        picture = tmp_path / "images" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(picture), np.full((32, 32, 3), 40 * number, np.uint8))
    classes = [f"n{i:08}" for i in range(1000)]
    options = PackOptions(image=ImageRecipe(size=32), label_maps=tmp_path / "maps")
    packed = pack(tmp_path / "images", tmp_path / "shards", options, class_names=classes, workers=1)
    maps = packed.manifests["train"].label_maps
    assert (maps.top, maps.rows, maps.columns, maps.num_classes) == (*SHAPE, 1000)


def test_transposed_maps_have_rows_and_columns_swapped(source, tmp_path):
    import_label_maps(source, tmp_path / "plain")
    import_label_maps(source, tmp_path / "turned", ImportOptions(transpose=True))
    for file in (tmp_path / "plain").rglob("*.lmap"):
        plain = decode_label_map(file.read_bytes())
        turned = decode_label_map((tmp_path / "turned" / file.relative_to(tmp_path / "plain")).read_bytes())
        for stored, swapped in zip(plain, turned, strict=True):
            np.testing.assert_array_equal(stored.swapaxes(1, 2), swapped)


def test_several_processes_write_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr("softshard.shards.labelmap_import._CHUNK", 8)
    (tmp_path / "src").mkdir()
    for number in range(30):
        torch.save(published(number % 7), tmp_path / "src" / f"{number}.pt")
    for name, workers in (("one", 1), ("two", 2)):
        import_label_maps(tmp_path / "src", tmp_path / name, workers=workers)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("one", "two")
    )
    assert one == two
    assert len(one) == 30 + 3  # and import.json, bad.jsonl, .lock


def test_a_full_disk_is_named_and_leaves_no_part_of_a_map(source, tmp_path):
    import_label_maps(source, tmp_path / "maps")
    for file in (tmp_path / "maps").rglob("*.lmap"):
        file.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # stands for the disk's
    try:
        with pytest.raises(OSError, match=r"File too large: .*\.lmap'"):
            import_label_maps(source, tmp_path / "maps", workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in (tmp_path / "maps").rglob("image*")] == []


def test_a_second_run_keeps_whole_maps_and_mends_damaged_ones(source, tmp_path):
    maps = tmp_path / "maps"
    import_label_maps(source, maps)
    files = sorted(maps.rglob("*.lmap"))
    before = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(b"")  # a power cut
    times = [file.stat().st_mtime_ns for file in files[2:]]
    summary = import_label_maps(source, maps)
    assert (summary.written, summary.kept) == (2, 4)
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns for file in files[2:]] == times


def test_other_options_do_not_mix_into_a_folder(source, tmp_path):
    import_label_maps(source, tmp_path / "maps")
    with pytest.raises(
        UsageError, match=r"'transpose': True.*found those of a run with .*'transpose': False"
    ):
        import_label_maps(source, tmp_path / "maps", ImportOptions(transpose=True))


def test_a_folder_with_something_else_is_left_alone(source, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "thesis.tex").write_text("keep me")
    with pytest.raises(UsageError, match=r"expected an empty or new folder, found 'thesis\.tex"):
        import_label_maps(source, tmp_path / "maps")


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zip_bomb():
    """A map's archive with a record that expands to more than a map may have."""
    buffer = io.BytesIO(saved(published()))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/1", bytes(80 << 20))
    return buffer.getvalue()


def claims_too_much():
    """The format before torch 1.6, with a storage of 2**40 values."""
    data = saved(torch.zeros(2, 1, 70, 70), _use_new_zipfile_serialization=False)
    size = (2 * 70 * 70).to_bytes(2, "little")
    assert data.count(b"M" + size) >= 1
    return data.replace(b"M" + size, b"\x8a\x06" + (2**40).to_bytes(6, "little"))


def changed(**what):
    tensor = published()
    for plane, value in what.items():
        tensor[{"score": 0, "id": 1}[plane], 0, 0, 0] = value
    return tensor


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"", "unreadable", "expected a file that torch.save wrote"),
        (b"\xff\xd8\xff not a tensor", "unreadable", "expected a file that torch.save wrote"),
        (saved(published())[:400], "unreadable", "expected a file that torch.save wrote"),
        (pickle.dumps(Evil()), "unreadable", "expected a file that torch.save wrote"),
        (saved(Evil()), "unreadable", r"cannot be read as one \(it is damaged, or holds more than tensors"),
        (zip_bomb(), "too-large", "expected at most 67108864 bytes of a label map, found a claim of"),
        (claims_too_much(), "too-large", "found a claim of 1099511627776"),
        (saved({"map": published()}), "not-a-label-map", "expected one dense tensor, found dict"),
        (saved(published()[0]), "not-a-label-map", r"expected a float tensor \[2, K, P, Q\], found float32 \[5, 3, 4\]"),
        (saved(published().long()), "not-a-label-map", "expected a float tensor .* found int64"),
        (saved(torch.zeros(1, 1, 1, 1).expand(2, 5, 4000, 4000)), "unreadable", "it is damaged"),
        (saved(changed(id=3.5)), "bad-ids", "expected whole numbers as class ids in plane 1, found 3.5"),
        (saved(changed(id=float("nan"))), "bad-ids", "expected whole numbers"),
        (saved(changed(id=1000)), "bad-ids", "expected class ids from 0 to 999, found .* to 1000"),
        (saved(published().flip(0)), "bad-ids", "expected whole numbers|expected class ids"),
        (saved(changed(score=float("inf"))), "not-a-label-map", "expected finite scores"),
        (saved(changed(id=published()[1, 1, 0, 0])), "not-a-label-map", "expected distinct class ids in each cell"),
        (saved(published(shape=(5, 4, 3))), "other-shape", r"expected \[K, P, Q\] \[5, 3, 4\] as the others"),
    ],
)  # fmt: skip
def test_a_bad_file_is_listed_with_its_reason(source, tmp_path, content, kind, reason):
    (source / "n00000000" / "zz.pt").write_bytes(content)
    summary = import_label_maps(source, tmp_path / "maps", workers=1)
    assert (summary.read, summary.written, summary.bad) == (7, 6, 1)
    (line,) = ledger(tmp_path / "maps")
    assert (line["path"], line["kind"]) == ("n00000000/zz.pt", kind)
    assert re.search(reason, line["reason"])


def test_maps_of_before_torch_1_6_are_read(tmp_path):
    file = tmp_path / "old.pt"
    torch.save(published(), file, _use_new_zipfile_serialization=False)
    scores, ids = read_published_map(file, 1000)
    np.testing.assert_array_equal(scores, published()[0])
    np.testing.assert_array_equal(ids, published()[1])


def test_half_precision_is_read_where_it_holds_every_id(tmp_path):
    file = tmp_path / "half.pt"
    torch.save(published(num_classes=2049, dtype=torch.float16), file)
    _, ids = read_published_map(file, 2049)
    np.testing.assert_array_equal(ids, published(num_classes=2049)[1])
    with pytest.raises(ImageError, match="expected class ids in float32 for 2050 classes, found float16"):
        read_published_map(file, 2050)


def test_ids_that_were_in_half_precision_once_are_found_in_float32(tmp_path):
    (tmp_path / "src").mkdir()
    for number in range(8):
        torch.save(published(number, 4000).half().float(), tmp_path / "src" / f"{number}.pt")
    for _ in range(2):  # the second run finds the first one's maps
        with pytest.raises(DataError, match="the maps have been in half precision, which corrupts ids"):
            import_label_maps(tmp_path / "src", tmp_path / "maps", ImportOptions(num_classes=4096))


def test_ids_above_2048_in_float32_are_kept(tmp_path):
    (tmp_path / "src").mkdir()
    for number in range(8):
        torch.save(published(number, 4000), tmp_path / "src" / f"{number}.pt")
    summary = import_label_maps(tmp_path / "src", tmp_path / "maps", ImportOptions(num_classes=4096))
    assert summary.written == 8


def test_too_many_bad_files_stop_the_run_and_all_are_listed(source, tmp_path, capsys):
    for number in range(11):
        (source / f"bad{number:02}.pt").write_bytes(b"no tensor")
    assert main(["maps", "import", str(source), str(tmp_path / "maps")]) == 1
    err = capsys.readouterr().err
    assert "expected at most 10 bad label maps, found 11" in err
    assert "bad.jsonl. Mend or remove them and run again, or run again with a larger --max-bad" in err
    assert len(ledger(tmp_path / "maps")) == 11
    assert main(["maps", "import", str(source), str(tmp_path / "maps"), "--max-bad", "0.7", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["read"], summary["written"] + summary["kept"], summary["bad"]) == (17, 6, 11)


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_a_source_without_maps_is_refused(tmp_path, what):
    src = tmp_path / "src"
    if what == "file":
        src.write_text("")
    elif what == "empty":
        src.mkdir()
    with pytest.raises((UsageError, DataError), match=r"expected (a folder of )?\.pt files"):
        import_label_maps(src, tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_without_torch_the_extra_is_named(source, tmp_path):
    shutil.rmtree(tmp_path / "maps", ignore_errors=True)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from softshard.shards.labelmap_import import import_label_maps\n"
        f"import_label_maps({str(source)!r}, {str(tmp_path / 'maps')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S)
    assert "softshard maps import needs the module 'torch'" in done.stderr
    assert "pip install 'softshard[loaders]'" in done.stderr
