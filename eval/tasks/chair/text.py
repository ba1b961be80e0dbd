"""From a caption to the words CHAIR looks at: tokens, singular forms, word pairs read as one word.

The reference pipeline is NLTK's `word_tokenize` (Punkt sentence splitter, then the Treebank-style word tokenizer) on
the lower-cased caption, a reduction of every token to its singular, and a greedy merge of word pairs such as "stop
sign". Punkt's model needs a download; on lower-cased text its decision comes down to the few rules of
`split_sentences`, which needs none and gives the same tokens.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from vlm_guard.eval.data.word_lists import read_word_list

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer


class Word(NamedTuple):
    """A word of a caption that may name an object: its reduced form, and the first and last of its tokens by number."""

    text: str
    first: int
    last: int


class ObjectVocabulary(NamedTuple):
    """The 80 MSCOCO categories and how captions name them.

    Attributes:
        node_of: from a singular word or a merged pair to its category ("kitten" -> "cat"); a category names itself.
        word_pairs: from "first second" to the one word the pair is read as.
        categories: the category names in MSCOCO's order of first appearance in the synonym list.
        listed: the words that are looked at: names of objects and first words of pairs.
    """

    node_of: Mapping[str, str]
    word_pairs: Mapping[str, str]
    categories: tuple[str, ...]
    listed: frozenset[str]


@cache
def object_vocabulary() -> ObjectVocabulary:
    """The synonym list of Rohrbach et al. (EMNLP 2018), as shipped in `eval/data/coco_objects.json`."""
    data = read_word_list("coco_objects.json")
    node_of = {category: category for category in data["synonyms"]}
    for category, synonyms in data["synonyms"].items():
        node_of.update(dict.fromkeys(synonyms, category))
    return ObjectVocabulary(
        node_of=MappingProxyType(node_of),
        word_pairs=MappingProxyType(data["word_pairs"]),
        categories=tuple(data["synonyms"]),
        listed=listed_words(node_of, data["word_pairs"]),
    )


def listed_words(node_of: Iterable[str], word_pairs: Iterable[str]) -> frozenset[str]:
    """The words that can name an object or begin a pair "first second"; all others of a caption are passed over."""
    return frozenset(node_of).union(pair.partition(" ")[0] for pair in word_pairs)


# A mark that may end a sentence: more text follows it, either at once (a closing or opening mark) or after space.
_END_MARK = re.compile(r"[.?!](?=[)\";}\]*:@'({\[!?]|\s+\S)")
_BEFORE_A_WORD = re.compile(r".*[\s)\";}\]*:@({\[!?]", re.DOTALL)
_NOT_AT_WORD_START = "`&#,-"
_NUMBER_OR_INITIAL = re.compile(r"-?[.,]?\d[\d,.-]*|[^\W\d]")
_CLOSING_MARKS = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|\Z)")
_LONGEST_WORD = 80


@cache
def _abbreviations() -> frozenset[str]:
    return frozenset(read_word_list("abbreviations.json")["abbreviations"])


def _next_character(text: str, position: int) -> int:
    while text[position].isspace():
        position += 1
    return position


def _ends_sentence(text: str, stop: int) -> bool:
    """Whether the mark at `stop` ends a sentence.

    These are the decisions Punkt takes on lower-cased English: no end after an ellipsis or an abbreviation, and none
    between a number or an initial and a lower-case word ("no. 7. the") or a punctuation mark.
    """
    if text[stop] != ".":
        return True
    before = _BEFORE_A_WORD.match(text, max(0, stop - _LONGEST_WORD), stop)
    begin = max(0, stop - _LONGEST_WORD) if before is None else before.end()
    word = text[begin:stop].lstrip(_NOT_AT_WORD_START)
    if word.endswith("."):
        return False
    if word in _abbreviations() or word.rsplit("-", 1)[-1] in _abbreviations():
        return False
    if _NUMBER_OR_INITIAL.fullmatch(word):
        following = text[_next_character(text, stop + 1)]
        return not (following.islower() or following in ";:,.!?")
    return True


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a lower-cased text, without loss: joined they are the text again.

    Closing quotes and brackets stay with the sentence they close. Of several marks in one word ("etc.).") only the
    last can be the end, and it is if one of them ends a sentence.
    """
    begin = 0
    ends = False
    matches = list(_END_MARK.finditer(text))
    for match, later in zip(matches, [*matches[1:], None]):
        ends = ends or _ends_sentence(text, match.start())
        if later is not None and not any(map(str.isspace, text[match.end() : later.start()])):
            continue
        if ends:
            following = _next_character(text, match.end())
            closing = _CLOSING_MARKS.match(text, following)
            cut = closing.end() if closing else following
            yield text[begin:cut]
            begin = cut
        ends = False
    yield text[begin:]


@cache
def _word_tokenizer() -> "NLTKWordTokenizer":
    from nltk.tokenize import NLTKWordTokenizer  # a second, with all of NLTK; few sentences need it

    return NLTKWordTokenizer()


# Most sentences of a caption are plain: words of letters, digits and inner hyphens, some with 's, commas behind words,
# one full stop at the end. Cutting those takes one expression instead of NLTK's thirty.
_PLAIN_WORD = r"[a-z0-9]++(?:-[a-z0-9]++)*+(?:'s)?+"
_PLAIN_SENTENCE = re.compile(rf"\s*(?:{_PLAIN_WORD},?\s++)*+(?:{_PLAIN_WORD}\.?\s*+)?+")
_PLAIN_TOKEN = re.compile(r"[a-z0-9-]+|'s|[,.]")
_WRITTEN_TOGETHER = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b")


def cut_sentence(sentence: str) -> list[str]:
    """The tokens NLTK's word tokenizer gives for one lower-cased sentence."""
    if _PLAIN_SENTENCE.fullmatch(sentence) and not _WRITTEN_TOGETHER.search(sentence):
        return _PLAIN_TOKEN.findall(sentence)
    return _word_tokenizer().tokenize(sentence)


def split_words(text: str) -> list[str]:
    """The tokens `nltk.word_tokenize` gives for a lower-cased text, without its sentence model."""
    return [token for sentence in split_sentences(text) for token in cut_sentence(sentence)]


_DOUBLE_QUOTES = ("``", "''", '"')


def locate_tokens(tokens: Sequence[str], text: str) -> list[tuple[int, int]]:
    """The `(start, end)` of every token in the text it was cut from, in order.

    The tokenizer rewrites double quotes as `` and '', so any of the three spellings is accepted for one of them.

    Raises:
        ValueError: a token does not occur in the rest of the text.
    """
    spans: list[tuple[int, int]] = []
    find, append, quotes = text.find, spans.append, frozenset(_DOUBLE_QUOTES)
    position = 0
    for token in tokens:
        start, length = find(token, position), len(token)
        if token in quotes:
            found = [(at, len(quote)) for quote in _DOUBLE_QUOTES if (at := find(quote, position)) >= 0]
            start, length = min(found, default=(-1, 0))
        if start < 0:
            raise ValueError(f"the token {token!r} is not in the text after character {position}")
        position = start + length
        append((start, position))
    return spans


def lower_with_offsets(caption: str) -> tuple[str, list[int] | None]:
    """The lower-cased caption and, where lower-casing changed its length, the origin of each of its characters.

    Returns None for the offsets in the ordinary case that both have the same length. The list has one entry more
    than the lower-cased text, so that an end position can be looked up too.
    """
    lowered = caption.lower()
    if len(lowered) == len(caption):
        return lowered, None
    offsets = [index for index, character in enumerate(caption) for _ in character.lower()]
    return lowered, [*offsets, len(caption)]


# textblob's inflector is the code the reference scripts use (clips/pattern) with two later changes that matter here:
# it reduces plurals in -ies of this list, which the scripts leave alone ("collies" names no dog), and it takes every
# word in -buses for "bus", which the scripts shorten by "es" ("airbuses" is "airbus", "abuses" is nothing).
@cache
def _inflector() -> "tuple[Callable[[str], str], tuple[str, ...]]":
    """The rules for one word, and the plurals that stay as they are."""
    from textblob.en.inflect import singular_ie, singularize

    return singularize, tuple(f"{word}s" for word in singular_ie)


@lru_cache(maxsize=200_000)
def singular(token: str) -> str:
    """The rule-based singular of a lower-case token, as the reference scripts' `pattern.en.singularize` gives it.

    Every token is put through the rules, verbs and all, with effects that are part of the metric: "bus" becomes "bu",
    "ties" becomes "ty", "glass" becomes "glas".
    """
    singularize, kept_plurals = _inflector()
    if token.endswith(kept_plurals):
        return token
    if token.endswith("buses"):
        return token.removesuffix("es")
    return singularize(token)


def find_words(words: Sequence[str], word_pairs: Mapping[str, str], listed: Container[str]) -> tuple[list[Word], int]:
    """The words of a caption that may name an object; pairs ("stop sign", "baby bear") are read as one word.

    Pairs merge greedily from the left and without overlap.

    Args:
        words: of a caption, reduced.
        word_pairs: from "first second" to the one word the pair is read as.
        listed: the names that are looked for and the first words of the pairs (`listed_words`).

    Returns:
        The words in order, and how many pairs were merged.
    """
    found: list[Word] = []
    merged, free, last = 0, 0, len(words) - 1
    for index in [index for index, word in enumerate(words) if word in listed]:
        if index < free:
            continue  # the second word of a pair
        pair = word_pairs.get(f"{words[index]} {words[index + 1]}") if index < last else None
        if pair is None:
            found.append(Word(words[index], index, index))
        else:
            found.append(Word(pair, index, index + 1))
            merged, free = merged + 1, index + 2
    return found, merged


def drop_toilet_seats(words: list[Word]) -> list[Word]:
    """Without "seat" where "toilet" is among the words too: a toilet's seat is no chair."""
    texts = {word.text for word in words}
    if "toilet" in texts and "seat" in texts:
        return [word for word in words if word.text != "seat"]
    return words
