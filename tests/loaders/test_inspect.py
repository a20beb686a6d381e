"""`softshard inspect`: what the page says is what the loader's batches hold."""

import base64
import dataclasses
import re
import shlex
import shutil

import cv2
import fsspec
import numpy as np
import pytest
import simplejpeg
from html_elements import Elements
from taught_sets import with_teacher

from softshard.loaders import Augment, Loader
from softshard.loaders.inspect_figures import heaviest_classes
from softshard.loaders.inspect_page import MAX_STORED_BYTES, command_line, inspect_page
from softshard.loaders.inspection import InspectOptions, MapView, inspect_data_set
from softshard.loaders.target_modes import SOFT_KINDS, TARGETS
from softshard.shards import (
    ImageRecipe,
    LabelTree,
    Manifest,
    PackOptions,
    UsageError,
    decode_label_map,
    encode_label_map,
    pack,
)
from softshard.shards.cli import main

AUGMENT = Augment(size=24)
HOSTILE = """<script>alert("x")</script> & 'quoted'"""


def options(**changes):
    return InspectOptions(**{"num_samples": 5, "num_crops": 2, "seed": 3, "augment": AUGMENT, **changes})


def page_of(dataset, *, top=5, **changes):
    return Elements(inspect_page(inspect_data_set(dataset, options(**changes)), top=top).render())


def whole_epoch(dataset, epoch, targets):
    """The one batch of a Loader's epoch: all 105 samples."""
    with Loader(
        dataset, batch_size=105, targets=targets, augment=AUGMENT, dtype="uint8", seed=3, num_threads=2
    ) as loader:
        loader.set_epoch(epoch)
        (batch,) = loader
    return batch


def embedded_jpegs(elements):
    """The bytes of every JPEG on the page, in its order."""
    sources = [
        attributes.get("src") or attributes.get("href") or ""
        for tag, attributes in elements.elements
        if tag in ("img", "image")
    ]
    return [
        base64.b64decode(text.partition(",")[2]) for text in sources if text.startswith("data:image/jpeg")
    ]


def bars(html):
    """(label, width in percent) of every bar, in the page's order."""
    found = re.findall(r'title="([^"]*)">[^<]*</span><span class="track"><i[^>]*width:([0-9.]+)%', html)
    return [(label, float(width)) for label, width in found]


@pytest.mark.parametrize(
    ("targets", "epoch"), [*((name, 0) for name in TARGETS if name not in SOFT_KINDS), ("relabel", 4)]
)
def test_crops_and_targets_are_those_of_a_loaders_batches(packed, targets, epoch):
    found = inspect_data_set(packed, options(epoch=epoch, targets=targets))
    for later in range(2):
        batch = whole_epoch(packed, epoch + later, targets)
        if not later:
            assert [sample.key for sample in found.samples] == batch.keys[:5]
        # Later epochs come in another order: the samples are looked for by their keys.
        for sample in found.samples:
            slot, crop = batch.keys.index(sample.key), sample.crops[later]
            assert crop.epoch == epoch + later
            assert crop.crop_xyxy == tuple(batch.crops[slot].tolist())
            assert crop.flip == bool(batch.flips[slot])
            assert np.array_equal(crop.image, batch.images[slot].permute(1, 2, 0).numpy())
            assert sample.class_index == int(batch.classes[slot])
            assert sample.levels.tolist() == batch.levels[slot].tolist()
            if targets == "none":
                assert crop.target is None
            else:
                np.testing.assert_allclose(crop.target, batch.targets[slot].numpy(), rtol=0, atol=1e-6)


def test_the_page_shows_the_numbers_of_the_batch(packed):
    html = inspect_page(inspect_data_set(packed, options(num_samples=1, num_crops=1)), top=3).render()
    batch = whole_epoch(packed, 0, "relabel")
    names = Manifest.load(packed).class_names
    target = batch.targets[0].numpy()
    best = np.argsort(-target)[:3].tolist()
    own = int(batch.classes[0])
    expected = [(names[index], round(100 * float(target[index]), 1)) for index in best]
    if own not in best:
        expected.append((names[own], round(100 * float(target[own]), 1)))
    expected = [
        (f"{name}: the image&#x27;s own class" if name == names[own] else name, width)
        for name, width in expected
    ]
    assert bars(html)[: len(expected)] == expected
    x0, y0, x1, y1 = batch.crops[0].tolist()
    assert f"{x0:.1%} to {x1:.1%} across, {y0:.1%} to {y1:.1%} down" in html
    assert ("mirrored" in html.partition("<h2>")[2]) == bool(batch.flips[0])
    (box, _) = (attributes for attributes in Elements(html).named("rect") if attributes.get("fill") == "none")
    svg = Elements(html).named("svg")[0]
    _, _, width, height = map(float, svg["viewbox"].split())
    drawn = [float(box[side]) for side in ("x", "y", "width", "height")]
    assert drawn == pytest.approx([x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height], abs=0.01)


def test_the_stored_image_is_embedded_byte_for_byte(packed, plain_samples):
    stored = {sample.key: sample.parts["jpg"] for sample in plain_samples}
    found = inspect_data_set(packed, options())
    embedded = embedded_jpegs(Elements(inspect_page(found).render()))
    assert {stored[sample.key] for sample in found.samples} <= set(embedded)


def test_a_large_stored_image_is_drawn_smaller_and_the_page_says_so(tmp_path):
    (tmp_path / "images" / "noise").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1400, 3), np.uint8)
    (tmp_path / "images" / "noise" / "a.jpg").write_bytes(simplejpeg.encode_jpeg(noise, quality=95))
    pack(tmp_path / "images", tmp_path / "shards", PackOptions(image=ImageRecipe(resize="none")), workers=1)
    html = inspect_page(inspect_data_set(tmp_path / "shards" / "train", options())).render()
    assert "are too many for this page" in html
    assert len(html) < MAX_STORED_BYTES


def test_label_vectors_and_teacher_are_named_level_by_level(packed, tmp_path):
    tree = LabelTree.load(packed / "tree.json")
    said = with_teacher(packed, tmp_path / "taught", tree.level_sizes)
    found = inspect_data_set(tmp_path / "taught", options())
    page = Elements(inspect_page(found).render())
    for sample in found.samples:
        chain, node = [], sample.class_index
        while node >= 0:
            chain, node = [node, *chain], int(tree.parents[node])
        assert " › ".join(f"{level} {tree.names[index]}" for level, index in enumerate(chain)) in page.text
        ids, probabilities = said[sample.key]
        # Levels of 2, 3 and 4 classes: one is kept of each.
        assert sample.teacher[0].tolist() == ids.tolist()
        assert sample.teacher[1].tolist() == probabilities.tolist()
        assert tree.names[int(tree.level_classes[0][ids[0]])] in page.text
    assert page.text.count("Distillation teacher") == 5


def test_every_path_of_a_class_with_several_parents_is_named(packed_all_paths):
    keys = [sample.key for sample in inspect_data_set(packed_all_paths, options(num_samples=15)).samples]
    gull = next(key for key in keys if key.startswith("gull"))
    text = page_of(packed_all_paths, keys=(gull,)).text
    assert "0 animal › 1 flier › 2 gull; 0 animal › 1 swimmer › 2 gull" in text


def test_a_data_set_without_tree_and_maps_works_and_says_what_is_missing(packed_plain):
    page = page_of(packed_plain)
    assert "Not in this data set: a label tree" in page.text
    assert "label maps, and with them targets of crops (softshard maps make)" in page.text
    assert "a distillation teacher's levels (kd)" in page.text
    assert "none (chosen for this data set)" in page.text
    assert "Label map" not in page.text.replace("label map", "")
    assert len([1 for attributes in page.named("rect")]) == 2 * 5 * 2  # outline and rim of two crops each


def test_the_summary_names_the_data_set_and_the_command_makes_the_page_again(packed, tmp_path, monkeypatch):
    found = inspect_data_set(packed, options(targets="relabel-single"))
    html = inspect_page(found, top=2).render()
    text = Elements(html).text
    manifest = Manifest.load(packed)
    for expected in (
        manifest.fingerprint[:12],
        "105 in 9 shards",
        "3 best of 9 classes",
        "4 rows x 5 columns",
    ):
        assert expected in text
    command = re.search(r"<code>(softshard inspect .*?)</code>", html)[1]
    assert main([*shlex.split(command)[1:], "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_the_command_line_quotes_and_names_what_is_not_the_default():
    assert command_line("a b", InspectOptions()) == "softshard inspect 'a b'"
    asked = InspectOptions(
        keys=("k",),
        seed=1,
        epoch=2,
        num_crops=4,
        targets="original",
        augment=Augment(size=32, scale=(0.5, 1.0)),
    )
    assert command_line("d", asked, 7) == (
        "softshard inspect d --keys k --seed 1 --epoch 2 --crops 4 --targets original --top 7 --size 32 --scale 0.5 1.0"
    )


def test_keys_that_look_like_options_are_asked_for_by_the_command_line(packed, tmp_path, capsys):
    words = shlex.split(command_line(str(packed), InspectOptions(keys=("-a", "--seed"))))
    assert words[3:] == ["--keys=-a", "--keys=--seed"]
    assert main([*words[1:], "-o", str(tmp_path / "page.html")]) == 2
    assert "does not have: '-a', '--seed'" in capsys.readouterr().err


def test_the_same_options_give_the_same_bytes(packed):
    pages = [inspect_page(inspect_data_set(packed, options())).render() for _ in range(2)]
    assert pages[0] == pages[1]


def test_the_page_refers_to_nothing_outside_and_every_picture_has_a_text(packed):
    html = inspect_page(inspect_data_set(packed, options())).render()
    page = Elements(html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert "http" not in re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]*", "", html)
    assert "url(" not in html
    assert all((each["src"] or "").startswith("data:image/") for each in page.named("img"))
    assert all((each["href"] or "").startswith("data:image/") for each in page.named("image"))
    assert all(each["alt"] for each in page.named("img"))
    assert all(each["role"] == "img" and each["aria-label"] for each in page.named("svg"))


def test_hostile_names_and_paths_are_text(packed_plain, tmp_path):
    found = inspect_data_set(packed_plain, options(num_samples=2))
    manifest = dataclasses.replace(found.manifest, class_names=(HOSTILE, "b"))
    samples = tuple(
        dataclasses.replace(
            sample, key=HOSTILE, meta={"path": HOSTILE, "size": [1, 1]}, class_index=0, problems=(HOSTILE,)
        )
        for sample in found.samples
    )
    html = inspect_page(
        dataclasses.replace(found, dataset=HOSTILE, manifest=manifest, samples=samples)
    ).render()
    assert "<script" not in html
    assert Elements(html).text.count(HOSTILE) >= 2 * 4


def test_metadata_of_any_length_are_cut(packed_plain):
    found = inspect_data_set(packed_plain, options(num_samples=1))
    meta = {"path": "x" * 10**6, "size": [40, 50], "note": ["y" * 10**6, {"deep": b"bytes"}]}
    sample = dataclasses.replace(found.samples[0], meta=meta)
    short, long = (
        inspect_page(each).render() for each in (found, dataclasses.replace(found, samples=(sample,)))
    )
    assert len(long) - len(short) < 10_000
    assert "998,000 characters more" in long


def test_the_page_lists_components_shards_and_the_largest_classes(packed, plain_samples):
    found = inspect_data_set(packed, options(num_samples=1))
    html = inspect_page(found).render()
    stored = next(each for each in plain_samples if each.key == found.samples[0].key)
    for suffix, data in stored.parts.items():
        assert f'<td>{suffix}</td><td class="num">{len(data):,}</td>' in html
    manifest = Manifest.load(packed)
    for shard in manifest.shards:
        assert f'<td>{shard.name}</td><td class="num">{shard.samples}</td>' in html
    counts = np.bincount(np.load(packed / "classes.npy"), minlength=9)
    for index, name in enumerate(manifest.class_names):
        assert f'<td>{name}</td><td class="num">{counts[index]}</td>' in html


def test_hostile_class_names_of_targets_and_maps_are_text(tmp_path):
    names = (HOSTILE, '"><img src=x onerror=alert(1)>')
    rng = np.random.default_rng(0)
    rows = ["path,label"]
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    for i, name in enumerate(names):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.jpg"), rng.integers(0, 256, (40, 50, 3), np.uint8))
        ids = np.zeros((1, 3, 4), np.uint16) + i
        label_map = encode_label_map(rng.normal(0, 1, (1, 3, 4)), ids, num_classes=2)
        (tmp_path / "maps" / f"{i}.lmap").write_bytes(label_map)
        rows.append(f'{i}.jpg,"{name.replace(chr(34), chr(34) * 2)}"')
    (tmp_path / "images" / "list.csv").write_text("\n".join(rows))
    pack(
        tmp_path / "images" / "list.csv",
        tmp_path / "shards",
        PackOptions(label_maps=tmp_path / "maps"),
        workers=1,
    )
    html = inspect_page(inspect_data_set(tmp_path / "shards" / "train", options())).render()
    page = Elements(html)
    assert not page.named("script")
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert any(HOSTILE in (svg.get("aria-label") or "") for svg in page.named("svg"))


def test_overlays_show_the_heaviest_classes_and_letters_the_best_of_each_cell(packed, plain_samples):
    found = inspect_data_set(packed, options(num_samples=1))
    (sample,) = found.samples
    stored = next(each.parts["lmap"] for each in plain_samples if each.key == sample.key)
    scores, ids = decode_label_map(stored)
    assert np.array_equal(sample.label_map.scores, scores)
    assert np.array_equal(sample.label_map.ids, ids)
    # Zeros where a class is not kept, the mean over the cells: what pooling over the whole image is.
    dense = np.zeros((9, *scores.shape[1:]))
    np.put_along_axis(dense, ids.astype(int), scores, axis=0)
    logits = dense.mean(axis=(1, 2))
    whole = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(sample.label_map.whole, whole, atol=1e-5)
    shown = heaviest_classes(sample.label_map)
    assert shown == np.argsort(-whole)[: len(shown)].tolist()
    assert 3 <= len(shown) <= 5
    html = inspect_page(found).render()
    best = np.take_along_axis(ids, scores.argmax(axis=0)[None], axis=0)[0]
    rows = re.findall(r'style="fill:#fff;[^"]*">([A-E·]+)</text>', html)
    assert rows == ["".join("ABCDE"[shown.index(i)] if i in shown else "·" for i in row) for row in best]


def test_a_map_of_one_class_has_one_overlay():
    ids = np.full((1, 2, 2), 4, np.uint16)
    whole = np.array([0.1, 0.1, 0.1, 0.1, 0.5, 0.1], np.float32)
    assert heaviest_classes(MapView(np.ones((1, 2, 2), np.float32), ids, whole)) == [4]


def test_samples_are_found_by_key_in_the_order_given(packed, plain_samples):
    keys = (plain_samples[60].key, plain_samples[2].key, plain_samples[60].key)
    found = inspect_data_set(packed, options(keys=keys))
    assert [(sample.number, sample.key) for sample in found.samples] == [(60, keys[0]), (2, keys[1])]


def test_unknown_keys_are_all_named(packed, plain_samples, tmp_path, capsys):
    keys = ["nothing", plain_samples[0].key, "neither"]
    assert main(["inspect", str(packed), "--keys", *keys, "-o", str(tmp_path / "p.html")]) == 2
    said = capsys.readouterr().err
    assert "found 2 that it does not have: 'nothing', 'neither'" in said
    assert f"such as {plain_samples[0].key!r}" in said
    assert not (tmp_path / "p.html").exists()


def flipped(data):
    """The same bytes, some of them changed in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 8]) + data[middle + 8 :]


@pytest.mark.parametrize(
    ("suffix", "change", "problem"),
    [
        ("lmap", flipped, "component 'lmap': expected checksum"),
        ("jpg", lambda data: b"\0" * len(data), "component 'jpg': expected a JPEG"),
        (
            "jpg",
            lambda data: data[:-200] + b"\xff\xd9" + b"\0" * 198,
            "component 'jpg': expected a whole JPEG",
        ),
        ("cls", lambda data: b"x" * len(data), "component 'cls': expected a decimal class index"),
        ("msgpack", lambda data: b"\xc1" * len(data), "component 'msgpack': expected a MessagePack map"),
    ],
)
def test_a_damaged_sample_is_a_card_that_says_what_is_wrong(
    packed, damage, tmp_path, capsys, suffix, change, problem
):
    whole = inspect_data_set(packed, options())
    folder, shard, key = damage(whole.samples[2].number, suffix, change)
    out = tmp_path / "page.html"
    asked = ["--samples", "5", "--crops", "2", "--seed", "3", "--size", "24", "-o", str(out)]
    assert main(["inspect", str(folder), *asked]) == 1
    said = capsys.readouterr().out
    assert f"{shard}: sample {key!r}, {problem}" in said
    page = Elements(out.read_text(encoding="utf-8"))
    assert f"{shard}: sample {key!r}, {problem}" in page.text
    assert "Damaged: 1 of these 5 samples" in page.text
    found = inspect_data_set(folder, options())
    assert [bool(sample.problems) for sample in found.samples] == [False, False, True, False, False]
    # The others are what they were: a decoder that met damage is not used again.
    for before, after in zip(whole.samples, found.samples, strict=True):
        assert before.key == after.key
        if not after.problems:
            assert all(
                np.array_equal(one.image, other.image) and one.crop_xyxy == other.crop_xyxy
                for one, other in zip(before.crops, after.crops, strict=True)
            )


def test_a_shard_that_is_cut_short_costs_only_its_own_samples(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "cut")
    whole = inspect_data_set(packed, options(num_samples=105, num_crops=1))
    shard = folder / whole.samples[0].shard
    shard.write_bytes(shard.read_bytes()[:-1000])
    found = inspect_data_set(folder, options(num_samples=105, num_crops=1))
    assert {sample.shard for sample in found.samples if sample.problems} == {shard.name}
    lost = sum(sample.shard == shard.name for sample in whole.samples)
    assert sum(bool(sample.problems) for sample in found.samples) == lost < 105
    html = inspect_page(found).render()
    assert f"{shard.name}: expected" in html
    assert "which cannot be read" in html


def test_a_map_over_another_class_list_is_shown_by_the_teachers_numbers(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "other")
    manifest = Manifest.load(folder)
    # As `maps make` with a teacher of 1,000 classes would write them.
    maps = dataclasses.replace(manifest.label_maps, num_classes=1000)
    found = inspect_data_set(folder, options(num_samples=1))
    sample = found.samples[0]
    label_map = sample.label_map._replace(whole=np.pad(sample.label_map.whole, (0, 991)))
    other = dataclasses.replace(
        found,
        manifest=dataclasses.replace(manifest, label_maps=maps),
        samples=(dataclasses.replace(sample, label_map=label_map),),
    )
    text = Elements(inspect_page(other).render()).text
    assert "over the teacher's 1,000 classes" in text
    assert "the teacher's class " in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--samples", "0"], "expected 1 to 200 samples on a page, found 0"),
        (["--samples", "201"], "expected 1 to 200 samples on a page, found 201"),
        (["--crops", "0"], "expected crops of 1 epoch or more, found 0"),
        (["--size", "2048"], "expected at most 33,554,432 pixels of crops on a page, found 150,994,944"),
        (["--epoch", "-1"], "expected epoch as an int from 0"),
        (["--scale", "0.5", "0.2"], "expected a scale (low, high) within (0, 1]"),
        (["--top", "0"], "expected 1 or more classes of a target, found 0"),
    ],
)
def test_wrong_calls_are_refused_by_name(packed, tmp_path, capsys, wrong, message):
    out = tmp_path / "page.html"
    assert main(["inspect", str(packed), *wrong, "-o", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_targets_that_pool_maps_need_maps(packed_plain, tmp_path, capsys):
    asked = ["--targets", "relabel", "-o", str(tmp_path / "page.html")]
    assert main(["inspect", str(packed_plain), *asked]) == 2
    assert "expected label maps for targets that pool them" in capsys.readouterr().err


def test_a_data_set_behind_a_url_gives_the_same_samples(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTSHARD_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(str(packed), "/inspected/train", recursive=True)
    keys = [sample.key for sample in inspect_data_set(packed, options(num_samples=2)).samples][::-1]
    for asked in (options(num_samples=4), options(keys=keys)):
        here, there = inspect_data_set(packed, asked), inspect_data_set("memory://inspected/train", asked)
        assert there.dataset == "memory://inspected/train"
        assert len(there.samples) == len(here.samples)
        for one, other in zip(there.samples, here.samples, strict=True):
            assert (one.key, one.jpeg, one.problems) == (other.key, other.jpeg, ())
            for crop, expected in zip(one.crops, other.crops, strict=True):
                np.testing.assert_array_equal(crop.image, expected.image)
                np.testing.assert_array_equal(crop.target, expected.target)


def test_unknown_modes_are_refused():
    with pytest.raises(UsageError, match="expected targets of none, original, relabel"):
        options(targets="other")


def test_the_default_page_of_pictures_as_imagenets_stays_below_three_megabytes(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(12):
        coarse = rng.integers(0, 256, (60, 80, 3), np.uint8)
        picture = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "images" / "a" / f"{i}.jpg"), picture)
    pack(tmp_path / "images", tmp_path / "shards", PackOptions(), workers=1)
    html = inspect_page(inspect_data_set(tmp_path / "shards" / "train")).render()
    assert len(html) < 3_000_000
