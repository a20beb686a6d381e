"""NLTK's own tokenizer and tagger, for who wants them: slower, and an extra."""

from __future__ import annotations

from collections.abc import Callable

from .errors import MissingExtraError, UsageError

_TAGGER = "averaged_perceptron_tagger_eng"


def nltk_tokenizer() -> Callable[[str], list[str]]:
    """NLTK's `word_tokenize(text, preserve_line=True)`, which needs no data.

    Raises:
        MissingExtraError: NLTK is not installed.
    """
    try:
        from nltk.tokenize import word_tokenize
    except ImportError as error:
        raise MissingExtraError("--tokenizer nltk", "nltk", error) from error
    return lambda text: word_tokenize(text, preserve_line=True)


def nltk_parts_of_speech() -> Callable[[list[str]], list[str]]:
    """NLTK's averaged perceptron tagger for English.

    Raises:
        MissingExtraError: NLTK is not installed.
        UsageError: its data are not.
    """
    try:
        from nltk.tag import PerceptronTagger
    except ImportError as error:
        raise MissingExtraError("--tagger nltk", "nltk", error) from error
    try:
        tagger = PerceptronTagger()
    except LookupError as error:
        raise UsageError(
            f"--tagger nltk: expected NLTK's data {_TAGGER!r}, found none. Run: python -m nltk.downloader {_TAGGER} (or "
            "set NLTK_DATA to the folder that has taggers/), or use --tagger wordnet, which needs no data"
        ) from error
    return lambda tokens: [part for _, part in tagger.tag(tokens)]
