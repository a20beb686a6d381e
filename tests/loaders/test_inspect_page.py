"""The page of `softshard inspect`: what it says is what the data set holds, and what samples say of themselves is text."""

import base64
import dataclasses
import re
import shutil

import cv2
import numpy as np
import pytest
import simplejpeg
from html_elements import Elements
from inspected_sets import HOSTILE, options, pack_classes, page_of, whole_epoch
from taught_sets import with_teacher

from softshard.loaders.inspect_figures import heaviest_classes
from softshard.loaders.inspect_page import MAX_STORED_BYTES, inspect_page
from softshard.loaders.inspection import MapView, inspect_data_set
from softshard.shards import ImageRecipe, LabelTree, Manifest, PackOptions, decode_label_map, pack
from softshard.shards.cli import main


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


def test_the_page_shows_the_numbers_of_the_batch(packed):
    html = inspect_page(inspect_data_set(packed, options(num_samples=1, num_crops=1)), top=3).render()
    batch = whole_epoch(packed, 0, targets="relabel")
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


def test_hostile_names_and_paths_are_text(packed_plain):
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


def test_hostile_class_names_of_targets_and_maps_are_text(tmp_path):
    page = page_of(pack_classes(tmp_path, (HOSTILE, '"><img src=x onerror=alert(1)>')))
    assert not page.named("script")
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert any(HOSTILE in (svg.get("aria-label") or "") for svg in page.named("svg"))


def test_metadata_of_any_length_are_cut(packed_plain):
    found = inspect_data_set(packed_plain, options(num_samples=1))
    meta = {"path": "x" * 10**6, "size": [40, 50], "note": ["y" * 10**6, {"deep": b"bytes"}]}
    sample = dataclasses.replace(found.samples[0], meta=meta)
    short, long = (
        inspect_page(each).render() for each in (found, dataclasses.replace(found, samples=(sample,)))
    )
    assert len(long) - len(short) < 10_000
    assert "998,000 characters more" in long


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


def test_the_page_in_a_file_has_the_batch_the_quarantine_and_the_lists(packed, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"key": "gone", "reason": "cut short"}\n')
    words = ["--samples", "1", "--size", "24", "--augment", "cutmix:1", "--step", "2", "--batch-size", "4"]
    words += ["--quarantine", str(tmp_path / "q.jsonl"), "-o", str(tmp_path / "p.html")]
    assert main(["inspect", str(packed), *words]) == 0
    html = (tmp_path / "p.html").read_text("utf-8")
    elements = Elements(html)
    assert len(re.findall("<figcaption>Slot ", html)) == 4
    for said in ("gone", "The batch of epoch 0, step 2", "train-000008.tar", "--augment cutmix:1 --step 2"):
        assert said in elements.text
    assert not elements.named("a")
