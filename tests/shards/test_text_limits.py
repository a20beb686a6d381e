"""Numbers and names in words."""

import pytest

from softshard.shards.text_limits import counted


@pytest.mark.parametrize(
    ("num", "things", "words"),
    [
        (0, ("shard",), "0 shards"),
        (1, ("shard",), "1 shard"),
        (1200, ("shard",), "1,200 shards"),
        (1, ("class",), "1 class"),
        (2, ("class",), "2 classes"),
        (2, ("leaf", "leaves"), "2 leaves"),
    ],
)
def test_things_are_counted_in_words(num, things, words):
    assert counted(num, *things) == words
