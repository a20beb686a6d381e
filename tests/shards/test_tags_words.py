"""Words of the packaged tables: nouns, adjectives, collocations, base forms; and how they are made."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import LONG_S

from softshard.shards.errors import DataError
from softshard.shards.make_words_table import main, read_words, seldom_words
from softshard.shards.tags_words import WORDS_PATH, WordTable, word_table

DICTIONARY = Path(os.environ.get("SOFTSHARD_WORDNET_DICT", "/usr/share/wordnet"))

SMALL = WordTable(
    nouns={"cat", "big_cat", "ox", "leaf", "man", "adam's_apple", "running", "run"},
    adjectives={"big", "red", "bad"},
    noun_exceptions={"oxen": ["ox"]},
    adjective_exceptions={"worse": ["bad"]},
    seldom={"run"},
)


@pytest.mark.parametrize(
    ("form", "noun", "adjective"),
    [
        ("cats", "cat", ""),
        ("oxen", "ox", ""),
        ("leaves", "leaf", ""),
        ("men", "man", ""),
        ("bigger", "", ""),  # no ending of WordNet's doubles a letter; adj.exc has `bigger`
        ("redest", "", "red"),
        ("worse", "", "bad"),
        ("big", "", "big"),
        ("dogs", "", ""),
    ],
)
def test_a_form_leads_to_its_noun_or_adjective(form, noun, adjective):
    assert (SMALL.noun_base(form), SMALL.adjective_base(form)) == (noun, adjective)


@pytest.mark.parametrize(
    ("token", "tag"),
    [
        ("Cats", "cat"),
        ("cats.", "cat"),
        ("BIG", "big"),
        ("running", "running"),
        ("run", ""),  # a noun too seldom
        ("the", ""),
        ("dog", ""),
        ("7", ""),
        (".", ""),
        ("", ""),
    ],
)
def test_a_token_and_its_tag(token, tag):
    assert SMALL.word(token).tag == tag


def test_collocations_are_found_by_the_tokens_that_a_text_has():
    assert SMALL.collocations["adam 's apple"] == "adam's apple"
    assert SMALL.longest["big cat"] == 2
    assert SMALL.longest["adam 's"] == 3


def test_the_packaged_table_has_what_wordnet_has():
    table = word_table()
    assert len(table.nouns) == 117_798
    assert len(table.adjectives) == 21_479
    assert {"big cat", "bird of prey", "beast of prey", "golden gate bridge"} <= set(
        table.collocations.values()
    )
    assert table.noun_base("geese") == "goose"
    assert table.adjective_base("happiest") == "happy"
    assert table.word("see").tag == table.word("then").tag == table.word("walk").tag == ""
    assert [table.word(word).tag for word in ("fly", "crane", "watch", "building")] == [
        "fly",
        "crane",
        "watch",
        "building",
    ]


CODE = """
import sys
from nltk.corpus import wordnet as nltk_wordnet
from softshard.shards.tags_words import word_table

table = word_table()
assert set(nltk_wordnet.all_lemma_names("n")) == table.nouns
assert set(nltk_wordnet.all_lemma_names("a")) == table.adjectives
words = sorted(table.nouns | table.adjectives)
forms = set(table._noun_exceptions) | set(table._adjective_exceptions)
for word in words[::7]:
    forms |= {word + ending for ending in ("", "s", "es", "er", "est", "r", "st", "men", "ing")}
    forms |= {word[:-1] + ending for ending in ("ies", "ves", "er", "est")}
    forms |= {word[:-3] + "men", word[:-2] + "ves"}
different = [
    form
    for form in sorted(forms)
    if (table.noun_base(form), table.adjective_base(form))
    != (nltk_wordnet.morphy(form, "n") or "", nltk_wordnet.morphy(form, "a") or "")
]
print(len(forms), different[:5])
sys.exit(bool(different) or len(forms) < 250_000)
"""


@pytest.mark.shared
def test_base_forms_are_those_of_nltks_morphy(shared_data):
    # In a process of its own: NLTK reads only data below the folders that it knew when it was imported.
    environment = {**os.environ, "NLTK_DATA": str((shared_data / "nltk_data").resolve())}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=LONG_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_words_that_are_seldom_nouns():
    lines = ["see%2:39:00:: 1 661", "see%1:15:00:: 1 0", "fly%2:38:00:: 1 58", "fly%1:05:00:: 1 9"]
    lines += ["up%4:02:00:: 1 79", "up%5:00:00:x:00 1 15", "swim%2:38:00:: 1 13"]
    assert seldom_words({"see", "fly", "up", "swim"}, lines) == {"see"}
    with pytest.raises(
        DataError, match=r"cntlist.rev: expected lines of sense key, number and uses, found 'see'"
    ):
        seldom_words({"see"}, ["see"])


@pytest.fixture
def dictionary(tmp_path):
    for name, text in {
        "index.noun": "  1 licence\ncat n 1 0 1 0 00000100\n",
        "index.adj": "  1 licence\nred a 1 0 1 0 00000200  \nbig a 1 0 1 0 00000300\n",
        "noun.exc": "zzz cat\n",
        "adj.exc": "worse bad\n",
        "cntlist.rev": "red%2:30:00:: 1 40\n",
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.skipif(
    not (DICTIONARY / "cntlist.rev").is_file(),
    reason="needs a WordNet 3.0 dictionary folder (SOFTSHARD_WORDNET_DICT, or Debian's wordnet-base)",
)
def test_the_packaged_table_is_that_of_wordnets_own_files():
    made = read_words(DICTIONARY)
    with np.load(WORDS_PATH, allow_pickle=False) as packaged:
        assert set(packaged.files) == set(made)
        assert all(np.array_equal(packaged[name], made[name]) for name in made)


def text(array):
    return array.tobytes().decode()


def test_a_table_is_made_of_a_dictionary_folder_and_read(dictionary, capsys):
    table = read_words(dictionary)
    assert text(table["adjectives"]) == "big\nred\n"
    assert text(table["seldom"]) == "red\n"
    assert main([str(dictionary), "-o", str(dictionary / "words.npz")]) == 0
    read = WordTable.load(words=dictionary / "words.npz")
    assert read.adjectives == {"big", "red"}
    assert read.noun_base("zzz") == "cat"
    assert main([str(dictionary / "nowhere"), "-o", str(dictionary / "words.npz")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_damaged_table_is_named(tmp_path):
    bad = tmp_path / "words.npz"
    bad.write_bytes(WORDS_PATH.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"words.npz: expected a WordNet table; .*install softshard again"):
        WordTable.load(words=bad)
    np.savez(bad, format=np.array("softshard-words 9"))
    with pytest.raises(DataError, match="of format 'softshard-words 1', found 'softshard-words 9'"):
        WordTable.load(words=bad)


def test_reading_the_words_imports_neither_nltk_nor_torch():
    code = (
        "import sys; from softshard.shards.tags_text import TextTagger; TextTagger()('a big cat'); "
        "sys.exit(bool({'nltk', 'torch', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=LONG_S).returncode == 0
