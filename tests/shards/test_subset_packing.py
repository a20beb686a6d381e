"""What takes the files of `softshard subset`: reshard and pack."""

import shutil

import numpy as np
import pytest
from packed_files import samples
from subset_command import run_subset

from softshard.shards import LabelTree, Manifest, SubsetFile, verify
from softshard.shards.cli import main
from softshard.shards.components import decode_class, decode_levels
from softshard.shards.manifest import load_sidecar, load_tree


def test_reshard_writes_a_subset_out_with_merged_labels(tmp_path, packed, chosen):
    run_subset("images", packed, "--classes", chosen, "-m", 3, "--seed", 5, "-o", tmp_path / "s.json")
    subset = SubsetFile.load(tmp_path / "s.json")
    arguments = ["--subset", str(tmp_path / "s.json"), "--drop", "lmap", "--shard-samples", "4"]
    assert main(["reshard", str(packed / "train"), str(tmp_path / "new"), *arguments]) == 0
    assert verify(tmp_path / "new", decode=True).problems == []
    old, new = samples(packed / "train"), samples(tmp_path / "new")
    assert set(new) == set(subset.keys)
    manifest, tree = (
        Manifest.load(tmp_path / "new"),
        load_tree(tmp_path / "new", Manifest.load(tmp_path / "new")),
    )
    assert manifest.class_names == ("pet", "creature")
    assert tree.classes == ("pet", "creature")
    for key, parts in new.items():
        expected = 0 if key.startswith("dog") else 1
        assert decode_class(parts["cls"], key) == expected
        np.testing.assert_array_equal(decode_levels(parts["hier.npy"], key), tree.vectors()[expected])
        assert (parts["jpg"], parts["msgpack"]) == (old[key]["jpg"], old[key]["msgpack"])
        assert set(parts) == {"jpg", "cls", "hier.npy", "msgpack"}
    assert np.bincount(load_sidecar(tmp_path / "new", manifest)).tolist() == [3, 3]
    record = manifest.recipe["reshard"]["subset"]
    assert record["fingerprint"] == subset.fingerprint
    assert record["images"] == {"num": 6, "method": {"name": "random", "per_class": 3, "seed": 5}}
    assert record["classes"]["method"]["name"] == "file"
    # A run of the same call continues; with another subset it is refused.
    assert main(["reshard", str(packed / "train"), str(tmp_path / "new"), *arguments]) == 0
    arguments[1] = str(chosen)
    assert main(["reshard", str(packed / "train"), str(tmp_path / "new"), *arguments]) == 2


def test_reshard_refuses_maps_over_the_old_classes_and_keys_of_another_set(tmp_path, packed, chosen, capsys):
    train, new = str(packed / "train"), str(tmp_path / "new")
    assert main(["reshard", train, new, "--subset", str(chosen)]) == 1
    assert "expected no component 'lmap', which is over the old classes" in capsys.readouterr().err
    arguments = ["--subset", str(chosen), "--drop", "lmap"]
    assert main(["reshard", train, new, *arguments, "--classes", train]) == 2
    assert "expected a subset by itself" in capsys.readouterr().err
    text = chosen.read_text().replace(
        '"images": null', '"images": {"method": {}, "source": {}, "keys": ["cow_1"]}'
    )
    chosen.write_text(text)
    assert main(["reshard", train, new, *arguments]) == 1
    assert "found 1 of 1 that they do not have: 'cow_1'" in capsys.readouterr().err
    chosen.write_text(text.replace('"oak"', '"elm"'))
    assert main(["reshard", train, new, *arguments]) == 1
    assert "found 1 that it does not have: 'elm'" in capsys.readouterr().err


def test_reshard_of_a_set_without_a_tree_has_none(tmp_path, source, groups):
    arguments = ["--size", "16", "--shard-samples", "8", "--workers", "1"]
    assert main(["pack", str(source), str(tmp_path / "set"), *arguments]) == 0
    run_subset("classes", source, "--method", "file", "--from", groups, "-o", tmp_path / "s.json")
    new = tmp_path / "new"
    assert (
        main(["reshard", str(tmp_path / "set" / "train"), str(new), "--subset", str(tmp_path / "s.json")])
        == 0
    )
    manifest = Manifest.load(new)
    assert manifest.tree_sha256 is None
    assert manifest.class_names == ("pet", "creature")
    assert np.bincount(load_sidecar(new, manifest)).tolist() == [7, 9]


def test_pack_makes_one_class_of_a_groups_folders(tmp_path, source, capsys):
    (tmp_path / "part.yaml").write_text("creature: [oak, bird]\n")
    run_subset(
        "classes", source, "--method", "file", "--from", tmp_path / "part.yaml", "-o", tmp_path / "s.json"
    )
    arguments = ["--size", "16", "--val-per-class", "1", "--shard-samples", "4", "--workers", "1"]
    command = ["pack", str(source), str(tmp_path / "set"), "--subset", str(tmp_path / "s.json"), *arguments]
    assert main(command) == 0
    assert "1 folder left out (too few images, or not in the class list): dog" in capsys.readouterr().out
    for split, num in (("train", 7), ("val", 2)):
        manifest = Manifest.load(tmp_path / "set" / split)
        assert manifest.class_names == ("creature",)
        assert manifest.num_samples == num
        assert manifest.recipe["subset"]["fingerprint"] == SubsetFile.load(tmp_path / "s.json").fingerprint
        assert {parts["cls"] for parts in samples(tmp_path / "set" / split).values()} == {b"0"}
    assert main(command) == 0  # the same plan: everything is there already
    assert "there already: " in capsys.readouterr().out
    assert main([*command, "--classes", str(source)]) == 2
    assert "expected a class list or a subset, which has its own, found both" in capsys.readouterr().err
    assert main([word for word in command if word not in ("--subset", str(tmp_path / "s.json"))]) == 2
    assert "class list was" in capsys.readouterr().err


def test_pack_refuses_a_subset_of_images_and_takes_a_tree_of_its_classes(
    tmp_path, packed, source, chosen, capsys
):
    run_subset("images", packed, "--classes", chosen, "-m", 1, "-o", tmp_path / "images.json")
    pack = ["pack", str(source), str(tmp_path / "new"), "--size", "16", "--workers", "1"]
    assert main([*pack, "--subset", str(tmp_path / "images.json")]) == 2
    assert "found chosen images. Pack all of it, then read it through the subset" in capsys.readouterr().err
    for more, found in (
        (["--folders", "index"], "folders called by their places"),
        (["--label-maps", str(tmp_path)], "label maps, which are over the classes before"),
    ):
        assert main([*pack, "--subset", str(chosen), *more]) == 2
        assert f"found {found}" in capsys.readouterr().err
    tree = LabelTree.from_table(["pet", "creature"], [("pet", "thing"), ("creature", "thing")])
    tree.save(tmp_path / "tree.json")
    assert main([*pack, "--subset", str(chosen), "--tree", str(tmp_path / "tree.json")]) == 0
    assert Manifest.load(tmp_path / "new" / "train").class_names == ("pet", "creature", "thing")
    shutil.rmtree(tmp_path / "new")
    LabelTree.from_table(["bird", "dog"], [("bird", "x"), ("dog", "x")]).save(tmp_path / "tree.json")
    assert main([*pack, "--subset", str(chosen), "--tree", str(tmp_path / "tree.json")]) == 1
    assert "expected the classes of the label tree" in capsys.readouterr().err


@pytest.mark.shared
def test_real_photographs_are_packed_in_groups(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = shared_data / "photos"
    run_subset("classes", photos, "--method", "groups", "-n", "20", "-o", "s.json")
    subset = SubsetFile.load("s.json")
    small = ["--size", "48", "--shard-samples", "100", "--workers", "1"]
    assert main(["pack", str(photos), "set", "--subset", "s.json", *small]) == 0
    assert verify("set").problems == []
    manifest = Manifest.load("set/train")
    assert manifest.class_names == subset.class_names
    counts = np.bincount(load_sidecar("set/train", manifest), minlength=20)
    assert counts.tolist() == [len(group.members) for group in subset.groups]
