import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from packed_files import files, samples
from ray_processes import wait_until

from softshard.shards import (
    DataError,
    ImageRecipe,
    LabelTree,
    Manifest,
    PackOptions,
    StorageError,
    UsageError,
    decode_label_map,
    encode_label_map,
    pack,
    verify,
)
from softshard.shards.images import store_image
from softshard.shards.manifest import load_sidecar


def test_every_image_is_packed_with_its_labels(source, tmp_path, options, table_tree):
    summary = pack(source, tmp_path / "set", options, tree=table_tree, workers=1)
    assert (summary.read, summary.packed, summary.bad) == (16, 16, 0)
    assert verify(tmp_path / "set", decode=True).problems == []
    found = samples(tmp_path / "set" / "train") | samples(tmp_path / "set" / "val")
    assert len(found) == 16
    for key, parts in found.items():
        name = key.split("_")[0]
        index = table_tree.class_index[name]
        image = (source / name / f"{key}.jpg").read_bytes()
        assert parts["jpg"] == store_image(image, options.image).jpeg
        assert parts["cls"] == str(index).encode()
        assert np.frombuffer(parts["hier.npy"][128:], "<i2").tolist() == table_tree.vectors()[index].tolist()
        assert msgpack.unpackb(parts["msgpack"]) == {"path": f"{name}/{key}.jpg", "size": [30, 40]}


def test_the_sidecar_has_the_classes_in_shard_order(packed_once):
    for name in ("train", "val"):
        classes = [int(parts["cls"]) for parts in samples(packed_once / name).values()]
        assert load_sidecar(packed_once / name, Manifest.load(packed_once / name)).tolist() == classes


def test_two_workers_give_the_bytes_of_one_and_so_does_a_second_time(source, tmp_path, options, table_tree):
    for name, workers in (("one", 1), ("two", 2), ("again", 2)):
        pack(source, tmp_path / name, options, tree=table_tree, workers=workers)
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "again")
    assert len(list((tmp_path / "one").rglob("*.tar"))) == 5


def test_the_seed_changes_the_order_and_nothing_else(source, tmp_path, options):
    for seed in (0, 1):
        pack(source, tmp_path / str(seed), replace(options, seed=seed), workers=1)
    one, other = (samples(tmp_path / seed / "train") for seed in "01")
    assert one == other
    assert list(one) != list(other)


def test_shards_are_sized_by_the_mean_of_their_samples_bytes(source, tmp_path):
    pack(source, tmp_path / "set", PackOptions(image=ImageRecipe(16), shard_bytes=20_000), workers=1)
    shards = Manifest.load(tmp_path / "set" / "train").shards
    mean = sum(shard.bytes - 1024 for shard in shards) / 16  # all 16 are in the estimate
    assert json.loads((tmp_path / "set" / "plan.json").read_bytes())["samples_per_shard"] == round(
        20_000 / mean
    )
    assert len(shards) > 1


# ---- Bad inputs


def test_bad_images_are_in_the_ledger_with_kind_and_reason(source, tmp_path, options):
    (source / "dog" / "dog_0.jpg").write_bytes(b"<html>404</html>")
    (source / "dog" / "dog_1.jpg").write_bytes(b"")
    cut = source / "oak" / "oak_0.jpg"
    cut.write_bytes(cut.read_bytes()[:-100])
    (source / "oak" / "oak_1.jpg").unlink()
    (source / "oak" / "oak_1.jpg").symlink_to("nowhere")
    summary = pack(source, tmp_path / "set", options, workers=2)
    assert summary.read == 16 == summary.packed + summary.bad
    assert summary.bad == 4
    ledger = {
        entry["path"]: entry
        for entry in map(json.loads, (tmp_path / "set" / "bad.jsonl").read_text().splitlines())
    }
    assert {path: entry["kind"] for path, entry in ledger.items()} == {
        "dog/dog_0.jpg": "unreadable",
        "dog/dog_1.jpg": "empty",
        "oak/oak_0.jpg": "truncated",
        "oak/oak_1.jpg": "unreadable",
    }
    assert ledger["dog/dog_0.jpg"]["reason"] == "dog/dog_0.jpg: expected an image, found bytes b'<html>40'"
    assert ledger["oak/oak_0.jpg"]["reason"].startswith("oak/oak_0.jpg: expected a whole JPEG image, found: ")
    assert "No such file" in ledger["oak/oak_1.jpg"]["reason"]
    assert verify(tmp_path / "set").ok


def test_too_many_bad_images_stop_the_run_and_are_named(source, tmp_path, options):
    for path in sorted(source.rglob("*.jpg"))[:11]:
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        pack(source, tmp_path / "set", options, workers=1)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'set'}: expected at most 10 bad inputs, found 11: ")
    assert "bird_" in text
    assert "[empty]" in text
    assert (
        f"all are in {tmp_path / 'set' / 'bad.jsonl'}. Mend them in place and run again with --retry-bad"
        in text
    )
    assert len((tmp_path / "set" / "bad.jsonl").read_text().splitlines()) == 11
    assert not list((tmp_path / "set").glob("*/manifest.json"))
    # A larger budget goes on from there.
    assert pack(source, tmp_path / "set", replace(options, max_bad=0.7), workers=1).bad == 11


def test_a_class_may_lose_all_its_images_but_a_split_may_not(source, tmp_path, options):
    for path in source.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"set/train: expected samples, found none that could be read; see the reasons"
    ):
        pack(source, tmp_path / "set", replace(options, max_bad=1.0), workers=1)


def test_images_that_a_size_estimate_cannot_read_are_in_the_ledger_once(source, tmp_path):
    (source / "dog" / "dog_0.jpg").write_bytes(b"")
    summary = pack(source, tmp_path / "set", PackOptions(image=ImageRecipe(16)), workers=1)
    assert (summary.packed, summary.bad) == (15, 1)
    assert len((tmp_path / "set" / "bad.jsonl").read_text().splitlines()) == 1


def test_a_name_that_is_not_utf_8_is_packed(tmp_path, source, options):
    os.rename(source / "dog" / "dog_0.jpg", os.fsencode(source / "dog") + b"/caf\xe9.jpg")
    pack(source, tmp_path / "set", options, workers=2)
    found = samples(tmp_path / "set" / "train") | samples(tmp_path / "set" / "val")
    key = next(key for key in found if key.startswith("dog_caf"))
    assert msgpack.unpackb(found[key]["msgpack"])["path"] == r"dog/caf\udce9.jpg"
    assert verify(tmp_path / "set").ok


# ---- Runs that were cut off


def test_a_second_run_of_the_same_plan_makes_nothing_and_returns_the_same(source, tmp_path, options):
    first = pack(source, tmp_path / "set", options, workers=1)
    before = {path: path.stat().st_ino for path in (tmp_path / "set").rglob("*.tar")}
    assert pack(source, tmp_path / "set", options, workers=1) == first
    assert {path: path.stat().st_ino for path in (tmp_path / "set").rglob("*.tar")} == before


@pytest.mark.parametrize("lost", ["train-000001.tar", "train-000001.idx", "receipts/train-000001.tar.json"])
def test_a_resume_makes_again_what_is_missing(source, finished, finished_once, options, lost):
    (finished / "train" / lost).unlink()
    (finished / "train" / "manifest.json").unlink()
    pack(source, finished, options, workers=1)
    assert files(finished) == files(finished_once)


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"plan": 1'])
def test_a_damaged_receipt_counts_as_none(source, finished, finished_once, options, damage):
    (finished / "train" / "receipts" / "train-000000.tar.json").write_bytes(damage)
    pack(source, finished, options, workers=1)
    assert files(finished) == files(finished_once)


def test_a_cut_shard_is_made_again(source, finished, finished_once, options):
    shard = finished / "train" / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    pack(source, finished, options, workers=1)
    assert files(finished) == files(finished_once)


def test_what_a_killed_run_left_half_written_disappears(source, tmp_path, finished_once, options):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "plan.json.part").write_bytes(b"{")  # killed before it had a plan
    pack(source, tmp_path / "set", options, workers=1)
    for name in ("train-000001.tar.part", "train-000001.idx.part", "receipts/train-000001.tar.json.part"):
        (tmp_path / "set" / "train" / name).write_bytes(b"half")
    pack(source, tmp_path / "set", options, workers=1)
    assert files(tmp_path / "set") == files(finished_once)


def children(process):
    """Process ids of a process's children, those that have ended and wait for their parent left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == process and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def long_run(tmp_path, jpeg):
    """A run of two workers in another process that has finished a shard and has ten or so to go."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to see processes")
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "a" / "0.jpg").write_bytes(jpeg(2000, 2000))
    for i in range(1, 60):
        (tmp_path / "source" / "a" / f"{i}.jpg").hardlink_to(tmp_path / "source" / "a" / "0.jpg")
    command = [
        sys.executable,
        "-c",
        "import sys; from softshard.shards.cli import main; sys.exit(main())",
        "pack",
    ]
    command += [
        tmp_path / "source",
        tmp_path / "set",
        "--size",
        "1500",
        "--shard-samples",
        "5",
        "--workers",
        "2",
    ]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: list((tmp_path / "set").glob("train/receipts/*.json")))
        assert run.poll() is None
        yield run
    finally:
        run.kill()
        run.wait()


def test_a_killed_run_leaves_no_process_and_continues_to_the_end(tmp_path, long_run):
    workers = children(long_run.pid)
    assert len(workers) >= 2
    long_run.kill()
    wait_until(lambda: not any(map(is_running, workers)))
    receipts = list((tmp_path / "set" / "train" / "receipts").glob("*.json"))
    finished = {path: path.stat().st_ino for path in (path.parents[1] / path.stem for path in receipts)}
    assert 0 < len(finished) < 12
    assert not (tmp_path / "set" / "train" / "manifest.json").exists()
    options = PackOptions(image=ImageRecipe(1500), shard_samples=5)
    assert pack(tmp_path / "source", tmp_path / "set", options, workers=2).packed == 60
    assert verify(tmp_path / "set").problems == []
    assert not list((tmp_path / "set").rglob("*.part"))
    assert {path: path.stat().st_ino for path in finished} == finished  # not made again


def test_a_worker_that_dies_is_reported_with_what_to_do(tmp_path, long_run):
    # Another child is multiprocessing's resource tracker.
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children(long_run.pid)}
    os.kill(next(child for child, command in commands.items() if "spawn_main" in command), signal.SIGKILL)
    text = long_run.communicate(timeout=60)[1]
    assert long_run.returncode == 2
    assert "expected worker processes to live, found one that died (killed, out of memory" in text
    assert "What is finished is kept: run it again to continue" in text
    assert "Traceback" not in text


# ---- One folder, one run


@pytest.mark.parametrize(
    "change",
    [
        {"image": ImageRecipe(17)},
        {"image": ImageRecipe(16, quality=91)},
        {"shard_samples": 5},
        {"shard_samples": None},
        {"seed": 1},
        {"val_per_class": 2},
        {"val_split": "lexical"},
    ],
)
def test_a_changed_option_into_the_same_folder_is_refused(source, finished, finished_once, options, change):
    with pytest.raises(UsageError, match=r"of an earlier run: .* was .*, is .*\. Give the same again, or"):
        pack(source, finished, replace(options, **change), workers=1)
    assert files(finished) == files(finished_once)


def test_a_changed_source_tree_or_class_list_into_the_same_folder_is_refused(
    source, tmp_path, options, table_tree
):
    pack(source, tmp_path / "set", options, tree=table_tree, workers=1)
    with pytest.raises(UsageError, match=r"found .* of an earlier run: "):
        pack(source, tmp_path / "set", options, class_names=table_tree.classes, workers=1)
    cut = LabelTree.from_json(
        {**table_tree.to_json(), "max_levels": 1, "fingerprint": _fingerprint(table_tree)}
    )
    with pytest.raises(UsageError, match=r"found .* of an earlier run: "):
        pack(source, tmp_path / "set", options, tree=cut, workers=1)
    (source / "dog" / "new.jpg").write_bytes((source / "dog" / "dog_0.jpg").read_bytes())
    with pytest.raises(UsageError, match=r"found .* of an earlier run: "):
        pack(source, tmp_path / "set", options, tree=table_tree, workers=1)


def _fingerprint(tree):
    return replace(tree, max_levels=1).fingerprint


def test_another_pixel_stack_is_refused_and_both_are_named(source, finished, options):
    plan = json.loads((finished / "plan.json").read_bytes())
    plan["pixel_stack"]["pillow"] = "0.0.1"
    (finished / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(
        UsageError, match=r"expected the pixel stack .*'0\.0\.1'.* of the earlier run, found "
    ):
        pack(source, finished, options, workers=1)


def test_a_folder_of_something_else_is_refused(source, tmp_path, options):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"set: expected an empty or new folder, found 'thesis\.tex'$"):
        pack(source, tmp_path / "set", options, workers=1)


def test_a_damaged_plan_is_refused(source, finished, options):
    (finished / "plan.json").write_bytes(b"{}")
    with pytest.raises(
        DataError, match=r"plan\.json: expected the plan of an earlier run, found: .*it is damaged"
    ):
        pack(source, finished, options, workers=1)


def test_a_folder_that_another_run_writes_is_refused(source, tmp_path, options):
    (tmp_path / "set").mkdir()
    with open(tmp_path / "set" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another softshard is writing there. Wait for it, or stop it"):
            pack(source, tmp_path / "set", options, workers=1)
    assert pack(source, tmp_path / "set", options, workers=1).packed == 16


def test_shards_do_not_go_into_their_source(source, options):
    for destination in (source, source / "out"):
        with pytest.raises(UsageError, match="expected a folder outside"):
            pack(source, destination, options)
    assert not (source / "out").exists()


def test_a_place_that_the_worker_processes_do_not_share_is_noticed(source, options):
    # fsspec's memory is one process's own: the shards of the others are gone with them.
    with pytest.raises(DataError, match="expected the shards just made, found none or others for 'train-"):
        pack(source, "memory://alone/set", options, workers=2)


def test_a_web_server_is_not_written_to(source, options):
    with pytest.raises(UsageError, match=r"expected a folder or a bucket to write to .* found 'https'"):
        pack(source, "https://user:secret@example.org/set", options)


def test_a_file_in_the_place_of_the_destination_is_refused(source, tmp_path, options):
    (tmp_path / "set").touch()
    with pytest.raises(UsageError, match="set: expected a new folder, found a file"):
        pack(source, tmp_path / "set", options)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(
        UsageError, match="link: expected a new folder, found a link to 'nowhere', which is not there"
    ):
        pack(source, tmp_path / "link", options)


@pytest.mark.parametrize(
    "wrong", [{"shard_bytes": 0}, {"shard_samples": 0}, {"max_bad": -0.1}, {"max_bad": 1.1}]
)
def test_a_wrong_option_is_a_wrong_call(wrong):
    with pytest.raises(UsageError, match="expected"):
        PackOptions(**wrong)


def test_no_worker_is_a_wrong_call(source, tmp_path, options):
    with pytest.raises(UsageError, match="workers: expected 1 or more, found 0"):
        pack(source, tmp_path / "set", options, workers=0)


# ---- Class lists and trees


def test_a_class_list_must_be_the_tree_s(source, tmp_path, options, table_tree):
    for names in (["dog", "bird", "oak"], ["bird", "dog"], ["bird", "dog", "oak", "animal"]):
        with pytest.raises(DataError) as caught:
            pack(source, tmp_path / "set", options, class_names=names, tree=table_tree, workers=1)
        assert f"expected the classes of the label tree {table_tree.fingerprint[:12]}, found others" in str(
            caught.value
        )
    assert not (tmp_path / "set").exists()
    pack(source, tmp_path / "set", options, class_names=["bird", "dog", "oak"], tree=table_tree, workers=1)
    assert Manifest.load(tmp_path / "set" / "train").class_names == table_tree.classes


def test_folders_outside_the_list_and_classes_without_folders_are_reported(source, tmp_path, options):
    summary = pack(source, tmp_path / "set", options, class_names=["oak", "elm", "dog"], workers=1)
    assert summary.dropped == (("bird", 5),)
    assert summary.without_images == ("elm",)
    assert Manifest.load(tmp_path / "set" / "train").class_names == ("oak", "elm", "dog")


# ---- Label maps


def with_maps(options, folder, **changes):
    return replace(options, label_maps=folder, **changes)


def test_label_maps_are_packed_as_they_are(source, tmp_path, options, maps_maker):
    maps = maps_maker(source, tmp_path / "maps", 3)
    pack(source, tmp_path / "set", with_maps(options, maps), workers=2)
    found = samples(tmp_path / "set" / "train")
    for key, parts in found.items():
        assert parts["lmap"] == (maps / key.split("_")[0] / f"{key}.lmap").read_bytes()
    info = Manifest.load(tmp_path / "set" / "train").label_maps
    assert info is not None
    assert (info.top, info.rows, info.columns, info.num_classes) == (3, 4, 5, 3)
    assert decode_label_map(parts["lmap"])[0].shape == (3, 4, 5)


def test_a_missing_or_damaged_or_foreign_map_is_in_the_ledger(source, tmp_path, options, maps_maker):
    maps = maps_maker(source, tmp_path / "maps", 3)
    (maps / "bird" / "bird_0.lmap").unlink()
    (maps / "dog" / "dog_0.lmap").write_bytes((maps / "dog" / "dog_0.lmap").read_bytes()[:-1])
    one = np.zeros((1, 4, 5), int)
    (maps / "dog" / "dog_1.lmap").write_bytes(encode_label_map(one, one, num_classes=3))
    (maps / "oak" / "oak_0.lmap").write_bytes(bytes(5 * 2**20))
    summary = pack(source, tmp_path / "set", with_maps(options, maps), workers=1)
    assert (summary.packed, summary.bad) == (12, 4)
    ledger = [json.loads(line) for line in (tmp_path / "set" / "bad.jsonl").read_text().splitlines()]
    assert {entry["path"]: entry["kind"] for entry in ledger} == {
        "bird/bird_0.jpg": "no-label-map",
        "dog/dog_0.jpg": "bad-label-map",
        "dog/dog_1.jpg": "bad-label-map",
        "oak/oak_0.jpg": "bad-label-map",
    }
    reasons = " ".join(entry["reason"] for entry in ledger)
    assert "expected [K, P, Q] [3, 4, 5] over 3 classes, found [1, 4, 5] over 3" in reasons
    assert verify(tmp_path / "set").ok


def test_maps_of_another_label_space_stop_the_run(source, tmp_path, options, maps_maker):
    maps = maps_maker(source, tmp_path / "maps", 4)
    with pytest.raises(DataError, match=r"over 3 classes, found \[3, 4, 5\] over 4"):
        pack(source, tmp_path / "set", with_maps(options, maps), workers=1)


def test_a_folder_without_maps_is_an_error(source, tmp_path, options):
    (tmp_path / "maps").mkdir()
    with pytest.raises(
        DataError, match=r"maps: expected <class>/<stem>\.lmap for the source's images, found none"
    ):
        pack(source, tmp_path / "set", with_maps(options, tmp_path / "maps"), workers=1)
    with pytest.raises(
        UsageError, match=r"nowhere: expected a folder of <class>/<stem>\.lmap files, found none"
    ):
        pack(source, tmp_path / "set", with_maps(options, tmp_path / "nowhere"), workers=1)


def test_a_resume_with_maps_of_another_shape_is_refused(source, tmp_path, options, maps_maker):
    pack(source, tmp_path / "set", with_maps(options, maps_maker(source, tmp_path / "maps", 3)), workers=1)
    others = maps_maker(source, tmp_path / "others", 3, (3, 5, 5))
    (tmp_path / "set" / "train" / "train-000000.tar").unlink()
    with pytest.raises(
        UsageError,
        match=r"expected label maps of \[K, P, Q\] \[3, 4, 5\] as in the earlier run, found \[3, 5, 5\]",
    ):
        pack(source, tmp_path / "set", with_maps(options, others), workers=1)


def test_bad_inputs_that_were_mended_are_packed_when_asked_for(source, tmp_path, finished_once, options):
    bad = sorted(source.rglob("*.jpg"))[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    first = pack(source, tmp_path / "set", options, workers=1)
    assert first.bad == 1
    bad.write_bytes(whole)
    again = pack(source, tmp_path / "set", options, workers=1)
    assert (again.bad, again.shards_kept) == (1, 5)
    mended = pack(source, tmp_path / "set", options, workers=1, retry_bad=True)
    assert (mended.bad, mended.shards_kept) == (0, 4)
    assert files(tmp_path / "set") == files(finished_once)


def test_with_a_budget_of_nothing_one_bad_input_stops_the_run(source, tmp_path, options):
    sorted(source.rglob("*.jpg"))[0].write_bytes(b"")
    with pytest.raises(DataError, match="expected at most 0 bad inputs, found 1"):
        pack(source, tmp_path / "set", replace(options, max_bad=0), workers=1)


def test_a_disk_that_fails_is_not_a_bad_image_and_the_run_continues(
    source, tmp_path, finished_once, options, monkeypatch
):
    task = sys.modules["softshard.shards.shard_task"]
    real, reads = task.read_image, []

    def failing(storage, location, path):
        reads.append(path)
        if len(reads) > 9:
            raise OSError(errno.EIO, "Input/output error", path)
        return real(storage, location, path)

    with monkeypatch.context() as patch:
        patch.setattr(task, "read_image", failing)
        with pytest.raises(StorageError, match="the disk or this machine is in trouble, not the image"):
            pack(source, tmp_path / "set", options, workers=1)
    assert pack(source, tmp_path / "set", options, workers=1).bad == 0
    assert files(tmp_path / "set") == files(finished_once)


def test_a_source_that_goes_away_is_not_many_bad_images(source, tmp_path, options, monkeypatch):
    task = sys.modules["softshard.shards.shard_task"]
    real, reads = task.read_image, []

    def unplugged(storage, location, path):
        reads.append(path)
        if len(reads) == 9:
            source.rename(tmp_path / "unplugged")
        return real(storage, location, path)

    monkeypatch.setattr(task, "read_image", unplugged)
    with pytest.raises(StorageError, match="the disk or this machine is in trouble"):
        pack(source, tmp_path / "set", options, workers=1)
    (tmp_path / "unplugged").rename(source)
    assert pack(source, tmp_path / "set", options, workers=1).bad == 0


def test_a_retry_that_is_killed_leaves_no_receipt_of_a_shard_that_has_changed(
    source, tmp_path, finished_once, options, monkeypatch
):
    bad = sorted(source.rglob("*.jpg"))[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    pack(source, tmp_path / "set", options, workers=1)
    bad.write_bytes(whole)

    def killed(*args):
        raise KeyboardInterrupt  # the index has its name by now, the shard has not

    with monkeypatch.context() as patch:
        patch.setattr("softshard.shards.destination._RenamedFile.publish", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "set", options, workers=1, retry_bad=True)
    pack(source, tmp_path / "set", options, workers=1)
    assert verify(tmp_path / "set").ok
    assert files(tmp_path / "set") == files(finished_once)
