import hashlib
import importlib.util
import subprocess
import sys

import pytest
from waiting import LONG_S

from softshard.shards.classes import (
    KNOWN_LISTS,
    class_list_sha256,
    load_class_list,
    noun_senses,
    resolve_wnid,
)
from softshard.shards.errors import DataError, MissingExtraError, UsageError

# Finding the spec does not import timm, which would import torch.
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's wheel")


@needs_timm
@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        ("imagenet-1k", 1_000),
        ("imagenet-12k", 11_821),
        ("imagenet-21k", 21_841),
        ("imagenet-21k-p-fall11", 11_221),
        ("imagenet-21k-p-winter21", 10_450),
    ],
)
def test_known_lists_have_their_published_sizes(name, num_classes):
    classes = load_class_list(name)
    assert len(classes) == num_classes
    assert all(resolve_wnid(wnid) == wnid for wnid in classes)


@needs_timm
def test_the_fall11_release_holds_the_other_lists_but_for_the_teddy():
    full = set(load_class_list("imagenet-21k"))
    assert set(load_class_list("imagenet-1k")) - full == {"n04399382"}
    assert set(load_class_list("imagenet-21k-p-fall11")) < full


@needs_timm
def test_a_known_list_is_read_without_importing_timm_or_torch():
    code = (
        "import sys; from softshard.shards.classes import load_class_list; load_class_list('imagenet-1k'); "
        "assert not {'timm', 'torch', 'nltk'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LONG_S)


def test_a_known_list_without_timm_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"'imagenet-1k' needs the module 'timm'.*softshard\[training\]"
    ):
        load_class_list("imagenet-1k")


@pytest.mark.parametrize("spec", ["imagenet-2k", "~no such user/list"])
def test_an_unknown_list_names_the_known_ones(spec):
    with pytest.raises(UsageError, match=spec) as caught:
        load_class_list(spec)
    assert all(name in str(caught.value) for name in KNOWN_LISTS)


@pytest.mark.parametrize(
    "content",
    [
        b"tabby cat\nn02084071\nh\xc3\xb6hle\n",
        b"tabby cat\nn02084071\nh\xc3\xb6hle",
        b"\xef\xbb\xbftabby cat\r\nn02084071 \r\nh\xc3\xb6hle\r\n",
    ],
)
def test_a_file_gives_its_lines(tmp_path, content):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    assert load_class_list(str(path)) == load_class_list(path) == ("tabby cat", "n02084071", "höhle")


def test_every_blank_and_repeated_line_is_named(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat\n\ndog\ncat\n \n")
    with pytest.raises(DataError) as caught:
        load_class_list(path)
    assert str(caught.value).splitlines() == [
        f"{path}: line 2: expected a class name, found a blank line",
        f"{path}: line 4: 'cat' stands on line 1 already",
        f"{path}: line 5: expected a class name, found a blank line",
    ]


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("")
    with pytest.raises(DataError, match="found an empty file"):
        load_class_list(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("höhle\n".encode("latin-1"))
    with pytest.raises(DataError, match="expected UTF-8 text, found byte 0xf6"):
        load_class_list(path)


def test_the_hash_is_over_names_and_newlines():
    assert class_list_sha256(["a", "bé"]) == hashlib.sha256("a\nbé\n".encode()).hexdigest()
    assert class_list_sha256(["a", "b"]) != class_list_sha256(["b", "a"])


@pytest.mark.parametrize(
    ("name", "wnid"),
    [
        ("n02123045", "n02123045"),
        ("tabby cat", "n02123045"),
        ("Tabby_Cat", "n02123045"),
        ("cat", "n02121620"),
        ("dome", "n13872072"),
    ],
)
def test_a_name_stands_for_its_first_sense(name, wnid):
    assert resolve_wnid(name) == wnid


@pytest.mark.parametrize("name", ["blorp", "n00000001", "", "N02123045"])
def test_a_name_that_wordnet_does_not_know_is_refused(name):
    with pytest.raises(DataError, match=r"expected a wnid or a noun.*child,parent table") as caught:
        resolve_wnid(name)
    assert repr(name) in str(caught.value)


def test_nouns_are_told_with_their_sense_and_wnids_are_not():
    lines = noun_senses(["crane", "n02123045"])
    assert len(lines) == 1
    assert lines[0].startswith("  crane is taken as n10914447 Crane, Stephen Crane")
    assert "senses, name the wnid for another" in lines[0]
