"""`softshard inspect --serve` over HTTP: what the pages say is what the data set holds, and nothing else is given out."""

import base64
import io
import json
import re
import shutil
import tarfile
import urllib.parse
import warnings

import cv2
import fsspec
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs starlette and uvicorn: pip install 'softshard[inspect]'")
from inspected_sets import HOSTILE, options, pack_classes, whole_epoch
from served_pages import served

from softshard.loaders import Augment, CutMix, Loader, Mixup
from softshard.loaders.browse_step import Step
from softshard.shards import LabelTree, Manifest, UsageError
from softshard.shards.shard_keys import find_key

MIXED = Augment(size=24, color_jitter=0.4, mixup=Mixup(0.5), cutmix=CutMix(1.0))


@pytest.fixture(autouse=True)
def no_threads_left():
    """In place of the check after every test: the module's server has threads until its end."""


@pytest.fixture(scope="module")
def client(packed, tmp_path_factory):
    lines = [{"shard": "train-000000.tar", "key": HOSTILE, "reason": "cut short", "sample": 5, "epoch": 0}]
    file = tmp_path_factory.mktemp("bad") / "bad_samples.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\nnot JSON\n")
    with served(packed, options(augment=MIXED), file) as client:
        yield client


def links(elements):
    return [attributes["href"] or "" for attributes in elements.named("a")]


def linked_samples(elements):
    found = (re.fullmatch(r"/sample/(\d+)", link) for link in links(elements))
    return {int(match[1]) for match in found if match}


def test_every_link_leads_to_a_page_that_refers_to_nothing_outside(client):
    waiting, seen = ["/"], set()
    while waiting:
        path = waiting.pop()
        kind = re.sub(r"\d+", "N", path)
        # Two pages of each kind: 105 samples would be 105 times the same test.
        if sum(re.sub(r"\d+", "N", each) == kind for each in seen) >= 2 or path in seen:
            continue
        seen.add(path)
        elements = client.page(path)
        assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in elements.elements}
        assert all((image["src"] or "").startswith("data:image/") for image in elements.named("img"))
        assert all(image["alt"] for image in elements.named("img"))
        assert all(not name.startswith("on") for _, attributes in elements.elements for name in attributes)
        assert len(elements.named("h1")) == 1
        assert all(link.startswith("/") and not link.startswith("//") for link in links(elements))
        waiting += links(elements)
    kinds = {re.sub(r"\d+", "N", path.partition("?")[0]) for path in seen}
    assert kinds == {
        "/",
        "/shards",
        "/shard/N",
        "/classes",
        "/class/N",
        "/tree",
        "/sample/N",
        "/step",
        "/bad",
        "/search",
    }


def test_the_pages_of_the_shards_hold_every_sample_once(client, packed, plain_samples):
    manifest = Manifest.load(packed)
    text = client.page("/shards").text
    found = []
    for number, record in enumerate(manifest.shards):
        assert record.name in text
        elements = client.page(f"/shard/{number}")
        found += sorted(linked_samples(elements))
        for sample in found[-record.samples :]:
            assert plain_samples[sample].key in elements.text
    assert found == list(range(105))


def test_long_lists_come_in_parts_that_hold_everything_once(packed_plain, monkeypatch):
    monkeypatch.setattr("softshard.loaders.browse.SAMPLES_A_PAGE", 4)
    with served(packed_plain) as client:
        parts = [linked_samples(client.page(f"/class/0?page={n}")) for n in range(3)]
        assert [len(part) for part in parts] == [4, 4, 2]
        assert set.union(*parts) == {
            number for number in range(20) if np.load(packed_plain / "classes.npy")[number] == 0
        }
        assert client.ask("/class/0?page=3")[0] == 404
        assert "/class/0?page=2" in links(client.page("/class/0"))


def test_a_class_page_names_its_path_children_and_siblings_and_its_samples(client, packed, plain_samples):
    tree = LabelTree.load(packed / "tree.json")
    mammal, cat = tree.classes.index("mammal"), tree.classes.index("cat")
    elements = client.page(f"/class/{cat}")
    assert "animal › mammal › cat" in elements.text
    assert "dog" in elements.text
    own = {i for i, sample in enumerate(plain_samples) if int(sample.parts["cls"]) == cat}
    assert linked_samples(elements) == own
    assert {f"/class/{cat}", f"/class/{tree.classes.index('dog')}"} <= set(
        links(client.page(f"/class/{mammal}"))
    )


def test_a_sample_page_has_the_stored_bytes_and_the_loaders_crops(client, packed, plain_samples):
    batch = whole_epoch(packed, 4)
    for number in (0, 40):
        sample = plain_samples[number]
        html = client.html(f"/sample/{number}?epoch=4&crops=1")
        assert base64.b64encode(sample.parts["jpg"]).decode() in html
        slot = batch.keys.index(sample.key)
        x0, _, x1, _ = batch.crops[slot].tolist()
        assert f"epoch 4{', mirrored' if batch.flips[slot] else ''}: {x0:.1%} to {x1:.1%} across" in html
        for suffix in ("jpg", "cls", "hier.npy", "lmap", "msgpack"):
            assert f'<td>{suffix}</td><td class="num">{len(sample.parts[suffix]):,}</td>' in html
        assert "Label map" in html


def test_a_step_page_is_the_batch_of_a_loader_with_its_mixing(client, packed):
    with Loader(
        packed, batch_size=8, augment=MIXED, targets="relabel", seed=3, dtype="uint8", num_threads=1
    ) as loader:
        loader.set_epoch(2)
        batch = list(loader)[3]
    html = client.html("/step?epoch=2&step=3&batch=8")
    captions = re.findall(r"<figcaption>(Slot .*?)</figcaption>", html)
    assert len(captions) == 8
    assert batch.mix is not None
    for slot, caption in enumerate(captions):
        assert caption.startswith(f"Slot {slot}: {batch.keys[slot]}, ")
        assert ("mirrored" in caption) == bool(batch.flips[slot])
        partner, share = int(batch.mix.partners[slot]), float(batch.mix.shares[slot])
        assert caption.endswith(f" with slot {partner}, {share:.0%} of it its own") == (partner != slot)
    assert "CutMix" in html
    assert "Mixup" in html
    widths = re.findall(r"<i[^>]*width:([0-9.]+)%", html)
    best = [
        round(100 * float(share), 1) for row in batch.targets for share in row.sort(descending=True)[0][:5]
    ]
    assert [float(width) for width in widths] == pytest.approx([each for each in best if each > 0], abs=0.11)


@pytest.mark.parametrize(
    ("batch_size", "slots"), [(8, 8), (32, 32), (100, 20), (33, 11), (1024, 32), (37, 1)]
)
def test_a_batch_is_shown_in_equal_parts(batch_size, slots):
    step = Step(batch_size=batch_size)
    assert (step.slots, step.slots * step.num_parts) == (slots, batch_size)


def test_the_parts_of_a_step_are_the_batch(client, packed):
    with Loader(
        packed, batch_size=64, augment=Augment(size=24), seed=3, dtype="uint8", num_threads=1
    ) as loader:
        batch = next(iter(loader))
    text = [client.page(f"/step?batch=64&part={part}").text for part in (0, 1)]
    keys = re.findall(r"Slot (\d+): ([\w-]+),", "".join(text))
    assert keys == [(str(slot), key) for slot, key in enumerate(batch.keys)]


def test_samples_are_found_by_key_and_number_and_classes_by_name(client, packed, plain_samples):
    for number in (0, 57, 104):
        found = client.page("/search?" + urllib.parse.urlencode({"q": plain_samples[number].key}))
        assert linked_samples(found) == {number}
        shard, place = find_key(packed, Manifest.load(packed), plain_samples[number].key)
        assert sum(record.samples for record in Manifest.load(packed).shards[:shard]) + place == number
    assert linked_samples(client.page("/search?q=31")) == {31}
    found = client.page("/search?q=MAM")
    names = Manifest.load(packed).class_names
    assert f"/class/{names.index('mammal')}" in links(found)
    assert linked_samples(found) == set()


@pytest.mark.parametrize("key", ["", "no such key", "cat", "00\n", "cat_00.msgpack cat_01"])
def test_what_is_no_key_is_not_found(packed, key):
    assert find_key(packed, Manifest.load(packed), key) is None


def test_the_quarantine_is_shown_as_text_and_leads_to_its_samples(client):
    elements = client.page("/bad")
    assert HOSTILE in elements.text
    assert not elements.named("script")
    assert "not a JSON map" in elements.text
    assert "/sample/5" in links(elements)


def test_a_ledger_above_the_data_set_is_shown_a_page_at_a_time(packed_plain, tmp_path):
    folder = shutil.copytree(packed_plain, tmp_path / "out" / "train")
    lines = [
        json.dumps({"path": f"a/{i}.jpg", "kind": "truncated", "reason": "r" * 3000}) for i in range(150)
    ]
    (tmp_path / "out" / "bad.jsonl").write_text("\n".join(lines) + "\n" + "x" * 300_000 + "\n")
    with served(folder) as client:
        first, second = client.page("/bad").text, client.page("/bad?page=1").text
    assert "a/99.jpg" in first
    assert "a/100.jpg" not in first
    assert "a/100.jpg" in second
    assert "2,500 characters more" in first
    assert len(second) < 100_000


def test_hostile_class_names_are_text_on_every_page(tmp_path):
    names = (HOSTILE, '"><b x="', "javascript:alert(1)", "x" * 3000, "cat\u202egpj.exe")
    with served(pack_classes(tmp_path, names), options(targets="original")) as client:
        for path in (
            "/",
            "/classes",
            "/class/0",
            "/class/1",
            "/class/2",
            "/sample/0",
            "/shard/0",
            "/step?batch=2",
        ):
            elements = client.page(path)
            assert not {"script", "b"} & {tag for tag, _ in elements.elements}
            assert all("onerror" not in attributes for _, attributes in elements.elements)
            assert "x" * 301 not in elements.text  # but cut
            assert "\u202e" not in elements.text  # which would turn the text beside it around
        classes = client.page("/classes").text
        assert HOSTILE in classes
        assert r"cat\u202egpj.exe" in classes
        assert "Classes with 'xxx' in their names: 1." in client.page("/search?q=xxx").text


def write_tar(path, samples):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_somebody_elses_tars_are_shown_with_hostile_keys_and_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTSHARD_CACHE", str(tmp_path / "cache"))
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))[1].tobytes()
    keys = ["<b onclick=x>", "plain", "cut"]
    (tmp_path / "tars").mkdir()
    write_tar(
        tmp_path / "tars" / "a.tar",
        [
            member
            for i, key in enumerate(keys)
            for member in (
                (f"{key}.jpg", jpeg[:-60] if key == "cut" else jpeg),
                (f"{key}.cls", b"%d" % (i % 2)),
            )
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with served(tmp_path / "tars") as client:
            overview = client.page("/")
            assert "Somebody else's tars" in overview.text
            shard = client.page("/shard/0")
            assert linked_samples(shard) == {0, 1, 2}
            assert keys[0] in shard.text
            assert not shard.named("b")
            assert keys[0] in client.page("/sample/0").text
            assert "expected a whole JPEG" in client.page("/sample/2").text
            assert linked_samples(client.page("/search?q=plain")) == {1}
            assert linked_samples(client.page("/class/0")) == {0, 2}
            assert "Slot 0" in client.page("/step?batch=2").text


def test_behind_a_url_shards_are_fetched_only_for_pictures(packed, plain_samples, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTSHARD_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(str(packed), "/browsed/train", recursive=True)
    shards = tmp_path / "cache" / "shards"
    counts = [record.samples for record in Manifest.load(packed).shards]
    first = sum(counts[:2])
    with served("memory://browsed/train") as client:
        client.page("/")
        client.page("/class/0")
        listed = client.page("/shard/2")
        assert plain_samples[first].key in listed.text
        assert linked_samples(client.page("/search?q=" + plain_samples[30].key)) == {30}
        assert not list(shards.glob("*.tar"))
        assert not listed.named("img")
        pictured = client.page("/shard/2?pictures=1")
        assert len(pictured.named("img")) == counts[2]
        assert len(list(shards.glob("*.tar"))) == 1
        assert plain_samples[first].key in client.page(f"/sample/{first}").text
        assert "Slot 0" in client.page("/step?batch=4").text


def test_a_damaged_sample_and_a_missing_shard_are_cards_that_say_so(packed, damage):
    folder, shard, key = damage(20, "jpg", lambda data: b"\0" * len(data))
    (folder / "train-000003.tar").unlink()
    with served(folder) as client:
        assert key in client.page("/shard/1").text
        assert "expected a JPEG" in client.page("/shard/1").text
        assert f"{shard}: sample {key!r}, component 'jpg': expected a JPEG" in client.page("/sample/20").text
        assert "train-000003.tar: expected the shard and its .idx" in client.page("/shard/3").text
        lost = sum(record.samples for record in Manifest.load(packed).shards[:3])
        assert "which cannot be read" in client.page(f"/sample/{lost}").text


def test_wrong_steps_are_refused():
    with pytest.raises(UsageError, match="expected lanes"):
        Step(batch_size=4, lanes=0)
