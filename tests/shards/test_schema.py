import struct
from pathlib import Path

import pytest

import softshard.shards
from softshard.shards import labelmap_header, teacher_levels
from softshard.shards.schema import (
    COMPONENTS,
    FORMAT_VERSION,
    KD,
    KEY_PATTERN,
    KEY_STEM_LENGTH,
    MAX_CLASS_ID,
    MAX_IMAGE_PIXELS,
    MAX_JPEG_SIDE,
    MAX_LEVEL_CLASSES,
    MAX_MANIFEST_BYTES,
    MAX_MAP_ELEMENTS,
    MAX_TAR_MEMBERS,
    MAX_TREE_BYTES,
    MAX_VOCABULARY,
    MAX_VOCABULARY_BYTES,
    SUFFIX_PATTERN,
    component_rank,
    split_member_name,
)

FORMAT = (Path(softshard.shards.__file__).parent / "FORMAT.md").read_text("utf-8")


def component_table():
    """The components, as FORMAT.md prints them."""
    lines = ["| component | content | required | bytes at most |", "|---|---|---|---|"]
    for component in COMPONENTS:
        required = "yes" if component.required else "no"
        lines.append(f"| `{component.suffix}` | {component.content} | {required} | {component.max_bytes:,} |")
    return "\n".join(lines)


def limit_table():
    """The limits beside those of the components, as FORMAT.md prints them."""
    limits = (
        ("members of a tar", MAX_TAR_MEMBERS),
        ("bytes of `manifest.json`", MAX_MANIFEST_BYTES),
        ("bytes of `tree.json`", MAX_TREE_BYTES),
        ("pixels of an image, from its header", MAX_IMAGE_PIXELS),
        ("pixels of a stored JPEG's side", MAX_JPEG_SIDE),
        ("elements K x P x Q of a label map", MAX_MAP_ELEMENTS),
        ("largest class id of a label map", MAX_CLASS_ID),
        ("classes of a hierarchy level", MAX_LEVEL_CLASSES),
        ("tags of a vocabulary", MAX_VOCABULARY),
        ("bytes of `vocabulary.tsv`", MAX_VOCABULARY_BYTES),
    )
    return "\n".join(
        ["| limit | at most |", "|---|---|", *(f"| {what} | {most:,} |" for what, most in limits)]
    )


def header_table(fields):
    """The byte layout of a component's header, as FORMAT.md prints it.

    Args:
        fields: struct code, name and meaning of each, little-endian without padding.
    """
    kinds = {"4s": "4 bytes", "B": "uint8", "H": "uint16", "I": "uint32"}
    lines, at = ["| byte | type | field | meaning |", "|---|---|---|---|"], 0
    for code, name, meaning in fields:
        lines.append(f"| {at} | {kinds[code]} | {name} | {meaning} |")
        at += struct.calcsize("<" + code)
    return "\n".join(lines)


def test_format_md_prints_the_tables_of_the_code():
    headers = (header_table(module.HEADER_FIELDS) for module in (labelmap_header, teacher_levels))
    for table in (component_table(), limit_table(), *headers):
        assert f"\n\n{table}\n\n" in FORMAT


def test_format_md_names_the_version_and_the_header_size():
    assert FORMAT.startswith(f"# The softshard format, version {FORMAT_VERSION[0]}.{FORMAT_VERSION[1]}\n")
    for module in (labelmap_header, teacher_levels):
        assert f"A header of {module.HEADER.size} bytes" in FORMAT


def test_the_limit_of_a_stored_teacher_is_its_codecs():
    assert KD.max_bytes == teacher_levels.MAX_BYTES


def test_every_component_is_in_the_table_in_the_order_of_the_tar():
    rows = [line.split("`")[1] for line in component_table().splitlines()[2:]]
    assert rows == [component.suffix for component in COMPONENTS]
    assert sorted(["zz", *reversed(rows)], key=component_rank) == [*rows, "zz"]


def test_the_longest_key_and_suffix_fill_a_ustar_name():
    key = "k" * (KEY_STEM_LENGTH + 9)
    assert KEY_PATTERN.fullmatch(key)
    assert not KEY_PATTERN.fullmatch(key + "k")
    assert SUFFIX_PATTERN.fullmatch("s" * 10)
    assert len(f"{key}.{'s' * 10}") == 100


@pytest.mark.parametrize("suffix", ["", "JPG", "a b", ".a", "a.", "a..b", "a/b", "s" * 11, "é", "a\n"])
def test_a_suffix_that_readers_would_read_differently_is_none(suffix):
    assert not SUFFIX_PATTERN.fullmatch(suffix)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_is_a_suffix(component):
    assert SUFFIX_PATTERN.fullmatch(component.suffix)


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("a.jpg", "a", "jpg"),
        ("a.hier.npy", "a", "hier.npy"),
        ("dir.x/a.JPG", "dir.x/a", "jpg"),
        ("a", "a", ""),
        ("./a.cls", "./a", "cls"),
    ],
)
def test_a_member_name_is_split_at_the_first_dot_of_its_last_part(name, key, suffix):
    assert split_member_name(name) == (key, suffix)
