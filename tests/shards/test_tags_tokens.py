"""The tokenizer, against NLTK's own."""

import importlib.util
import re
from pathlib import Path

import nltk
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize

from softshard.shards.tags_tokens import tokenize


def nltk_tokens(text):
    return word_tokenize(text, preserve_line=True)


def words(tokens):
    """Tokens that could be words: those with a letter."""
    return [token for token in tokens if any(character.isalpha() for character in token)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("  \n", []),
        ("a big cat, seen (once).", ["a", "big", "cat", ",", "seen", "(", "once", ")", "."]),
        ("The dog. It barks.", ["The", "dog.", "It", "barks", "."]),
        ("St. Bernard's dogs'", ["St.", "Bernard", "'s", "dogs", "'"]),
        ("I can't, we'll, cannot", ["I", "ca", "n't", ",", "we", "'ll", ",", "can", "not"]),
        pytest.param(
            "'cat' o'clock",
            ["'", "cat", "'", "o'clock"],
            marks=pytest.mark.skipif(
                nltk.__version__.startswith("3.9"), reason="NLTK 3.9 keeps the first quote"
            ),
        ),
        ("black/white fat-free 3,5 1:2", ["black/white", "fat-free", "3,5", "1:2"]),
        ("cat--dog…end", ["cat", "--", "dog…end"]),
        ("the “big” cat’s", ["the", "“", "big", "”", "cat", "’", "s"]),
        ("#cat @home 5% a&b", ["#", "cat", "@", "home", "5", "%", "a", "&", "b"]),
        ("wait...what", ["wait", "...", "what"]),
    ],
)
def test_texts_are_cut_as_by_nltk(text, tokens):
    assert tokenize(text) == tokens
    assert words(tokens) == words(nltk_tokens(text))


def test_words_of_all_definitions_in_timm_are_those_of_nltk():
    folder = Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    lines = (folder / "imagenet_synset_to_definition.txt").read_text("utf-8").splitlines()
    definitions = [line.partition("\t")[2] for line in lines]
    assert len(definitions) == 21_844
    assert [text for text in definitions if words(tokenize(text)) != words(nltk_tokens(text))] == []


WORDS = (
    "dog",
    "cats",
    "U.S.",
    "O'Brien",
    "don't",
    "dog's",
    "gonna",
    "it's",
    "3",
    "4",
    "5:6",
    "black-white",
    "é",
)
MARKS = (
    ",",
    ", ",
    ". ",
    "; ",
    " (",
    ") ",
    " - ",
    "--",
    "...",
    "! ",
    "? ",
    "/",
    "&",
    "#",
    "“",
    "” ",
    "‘",
    " — ",
    "\t",
    " ",
)
PIECES = st.sampled_from(WORDS + MARKS)

# Where NLTK leaves a mark at a word and softshard does not: `,dog` of `,,dog`, `dog's` of `dog's'`; and a period that
# ends a text before a dash or space of another script.
DIFFERENCES = re.compile(r"[,:][,:]|'\w*[^\w\s]|\.[^\w]*$")


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_words_of_any_text_are_those_of_nltk(text):
    assume(not DIFFERENCES.search(text))
    assert words(tokenize(text)) == words(nltk_tokens(text))


def test_the_same_run_is_cut_alike_again():
    assert tokenize("dog's (dog's) dog's") == ["dog", "'s", "(", "dog", "'s", ")", "dog", "'s"]
    assert tokenize("dog's") == tokenize("dog's")


def test_a_word_too_long_for_a_tag_is_left_as_it_is():
    assert tokenize("x" + "'s" * 8000 + " dog's") == ["x" + "'s" * 8000, "dog", "'s"]
    assert tokenize("x" * 98 + "'s") == ["x" * 98, "'s"]
    assert tokenize("x" * 99 + "'s") == ["x" * 99 + "'s"]


def test_a_text_without_end_is_cut_in_one_go():
    assert len(tokenize("x" * 1_000_000 + " y" * 1000)) == 1001
    assert tokenize("." * 100_000)[-1].endswith(".")
    assert len(tokenize("'" * 20_000)) >= 1
