"""CHAIR's `wordnet` text mode: part-of-speech tags and WordNet lemmas, with data NLTK keeps outside its package."""

from functools import cache
from typing import Any

# Where each data set is found under NLTK's data folders, by the name `nltk.downloader` knows it by. With the slash at
# the end NLTK also looks into an archive of that name, which is how the downloader leaves WordNet.
NLTK_DATA = {
    "punkt_tab": "tokenizers/punkt_tab/english/",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng/",
    "wordnet": "corpora/wordnet/",
}

# Penn Treebank tags map to WordNet's parts of speech by their first letter; everything else counts as a noun.
_PART_OF_SPEECH = {"J": "a", "V": "v", "N": "n", "R": "r"}


def missing_nltk_data() -> list[str]:
    """The names of the NLTK data sets that `wordnet` mode needs and that are not installed."""
    import nltk

    missing = []
    for name, location in NLTK_DATA.items():
        try:
            nltk.data.find(location)
        except LookupError:
            missing.append(name)
    return missing


def require_nltk_data() -> None:
    """Check that `wordnet` mode can run.

    Raises:
        FileNotFoundError: an NLTK data set is not installed; the message names it and the command that gets it.
    """
    missing = missing_nltk_data()
    if missing:
        raise FileNotFoundError(
            f"CHAIR mode 'wordnet' needs the NLTK data {', '.join(missing)}. Get it with "
            f"`python -m nltk.downloader {' '.join(missing)}` (or set NLTK_DATA to a folder that has it), or use "
            "mode 'pattern', which needs no downloads and is a different variant of the metric."
        )


@cache
def _lemmatizer() -> Any:
    from nltk.stem import WordNetLemmatizer

    return WordNetLemmatizer()


@cache
def _lemma(token: str, part_of_speech: str) -> str:
    return _lemmatizer().lemmatize(token, part_of_speech)


def split_words(text: str) -> list[str]:
    """The tokens of a lower-cased caption, by NLTK with its own sentence model."""
    import nltk

    return nltk.word_tokenize(text)


def lemmas(tokens: list[str]) -> list[str]:
    """The lemma of every token of one caption, by the part of speech the tagger gives it in the whole caption.

    With effects that are part of the metric: "seated" becomes "seat" (a chair), "skiing" becomes "ski", "men" stays.
    """
    import nltk

    return [_lemma(token, _PART_OF_SPEECH.get(tag[:1], "n")) for token, tag in nltk.pos_tag(tokens)]
