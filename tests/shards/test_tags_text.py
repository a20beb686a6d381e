"""Candidate tags of texts: what is kept whole, what is left out, what stands for what."""

import builtins
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from softshard.shards.errors import MissingExtraError, UsageError
from softshard.shards.tags_nltk import nltk_parts_of_speech, nltk_tokenizer
from softshard.shards.tags_text import LONGEST_TEXT, TextTagger, clean, image_text, label_words, split_tags


@pytest.fixture(scope="module")
def tagger():
    return TextTagger()


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("The Big Cats on green grass.", ["big cat", "green", "grass"]),
        ("Beasts of prey, birds of prey", ["beast of prey", "bird of prey"]),
        ("Adam's apple", ["adam's apple"]),
        ("a St. Bernard at the Golden Gate Bridge", ["st bernard", "golden gate bridge"]),
        ("cat cats CAT", ["cat"]),
        ("They were running and see it then", ["running"]),
        ("a big. Cat", ["big", "cat"]),
        ("big, cat", ["big", "cat"]),
        ("big (cat)", ["big", "cat"]),
        ("42 7 x ?!", []),
        ("", []),
        ("Hund Katze 犬 кошка", []),
        ("men and women, leaves, geese", ["men", "woman", "leaf", "goose"]),
    ],
)
def test_nouns_adjectives_and_collocations_in_the_order_of_the_text(tagger, text, tags):
    assert tagger(text) == tags


def test_the_longest_collocation_wins(tagger):
    assert tagger("great white shark") == ["great white shark"]
    assert tagger("white shark") == ["white shark"]
    assert tagger("great white") == ["great", "white"]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("A photo of a big cat. It lives in a zoo.", ["photo", "big cat", "life", "zoo"]),
        ("San Francisco. Dog.", ["san francisco", "dog"]),
        ("Big cats. Beasts of prey. Birds", ["big cat", "beast of prey", "bird"]),
        (
            "World War 2. Vitamin C. Mt. St. Helens. St. Bernard. Sea",
            ["world war 2", "vitamin c", "mt. st. helens", "st bernard", "sea"],
        ),
        ("great white. Shark", ["great", "white", "shark"]),
        ("beast of. Prey big.", ["beast", "prey", "big"]),
        ("golden gate. Bridge", ["golden gate", "bridge"]),
    ],
)
def test_a_collocation_may_end_a_sentence_and_none_goes_on_over_its_end(tagger, text, tags):
    assert tagger(text) == tags


def test_a_collocation_may_end_a_field(tagger):
    record = {"title": "A big cat.", "description": "San Francisco.", "tags": ["great white shark."]}
    assert tagger(image_text(record).text) == ["big cat", "san francisco", "great white shark"]


def test_a_given_part_of_speech_decides():
    tags = {"duck": "VB", "green": "JJ", "see": "NN", "dogs": "NNS", "the": "DT"}
    tagger = TextTagger(parts_of_speech=lambda tokens: [tags[token] for token in tokens])
    assert tagger("duck the green see dogs") == ["green", "see", "dog"]


def test_text_is_cleaned_of_markup_entities_and_addresses():
    assert clean('a <b class="x">cat</b> &amp; dog').split() == ["a", ",", "cat", ",", "&", "dog"]
    assert clean("see http://a.b/big/cat?x=1 now www.dog.com").split() == ["see", ",", "now", ","]
    assert clean("a < b") == "a < b"


def test_the_fields_of_a_record_are_joined_and_never_run_into_each_other(tagger):
    record = {"title": "big", "description": "cat", "tags": ["bird", "of prey"], "other": "dog"}
    assert image_text(record) == ("big , cat , bird , of prey", 0)
    assert tagger(image_text(record).text) == ["big", "cat", "bird", "prey"]


@pytest.mark.parametrize("value", [None, 7, {"a": 1}, [], [None, 3], "", "  "])
def test_fields_that_hold_no_text_are_none(value):
    assert image_text({"title": value if not isinstance(value, str) else "", "tags": value}) == ("", 0)


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ("big cat|dog", ["big cat", "dog"]),
        ("big cat; dog,", ["big cat", "dog,"]),
        ("big cat, dog", ["big cat", "dog"]),
        ("bigcat dog", ["bigcat", "dog"]),
        (["big cat", 7, "dog"], ["big cat", "dog"]),
        (7, []),
    ],
)
def test_tags_are_a_list_or_a_separated_text(value, tags):
    assert split_tags(value) == tags


def test_a_caption_of_megabytes_is_cut_and_counted(tagger):
    record = {"title": "a cat", "description": "dog " * 3_000_000, "tags": ["tree"] * 6000}
    text, num_cut = image_text(record)
    assert num_cut == 2
    assert len(text) < 3 * LONGEST_TEXT
    assert tagger(text) == ["cat", "dog", "tree"]


def test_what_labels_are_called():
    assert label_words("n02123045") == "tabby , tabby cat"
    assert label_words("tabby_cat") == "tabby cat"
    assert label_words("n99999999") == "n99999999"


def test_both_tokenizers_give_the_same_tags_for_all_definitions_in_timm(tagger):
    folder = Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    lines = (folder / "imagenet_synset_to_definition.txt").read_text("utf-8").splitlines()
    texts = [line.partition("\t")[2] for line in lines]
    other = TextTagger(tokenizer=nltk_tokenizer())
    assert len(texts) == 21_844
    assert [text for text in texts if tagger(text) != other(text)] == []


def test_a_missing_nltk_or_its_data_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.raises(
        UsageError, match=r"--tagger nltk: expected NLTK's data .*--tagger wordnet, which needs no data"
    ):
        nltk_parts_of_speech()
    real = builtins.__import__

    def without_nltk(name, *args, **kwargs):
        if name.startswith("nltk"):
            raise ImportError("No module named 'nltk'", name="nltk")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_nltk)
    with pytest.raises(MissingExtraError, match=r"pip install 'softshard\[nltk\]'"):
        nltk_tokenizer()
    with pytest.raises(MissingExtraError, match=r"pip install 'softshard\[nltk\]'"):
        nltk_parts_of_speech()


CODE = """
from softshard.shards.tags_nltk import nltk_parts_of_speech, nltk_tokenizer
from softshard.shards.tags_text import TextTagger
tagger = TextTagger(tokenizer=nltk_tokenizer(), parts_of_speech=nltk_parts_of_speech())
assert tagger("They watch the big cats run.") == ["big cat"], tagger("They watch the big cats run.")
assert tagger("A gold watch on a red table.") == ["gold", "watch", "red", "table"]
"""


@pytest.mark.shared
def test_nltks_real_tagger_tells_a_verb_from_a_noun(shared_data):
    environment = {**os.environ, "NLTK_DATA": str((shared_data / "nltk_data").resolve())}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
