"""Which words of an answer name a thing: a rule for nouns in English, or a list of words.

A method of finding mentions is any function from a text to `FoundMention`s, so that a tagger or another language can
take the place of these.
"""

import re
from collections.abc import Iterable, Mapping

from vlm_guard.grounding.mention import FoundMention, MentionFinder

_TOKEN = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\w\s]")
# Words that open a noun phrase.
_LISTED_OPENERS = """
    a an the this that these those some any another each every several many few both two three four five six
    seven eight nine ten eleven twelve dozen his her its their my your our no more other
"""
_OPENERS = frozenset(_LISTED_OPENERS.split())
# Words that end a noun phrase: the noun stands in front of them.
_LISTED_CLOSERS = """
    of in on at by for from to into onto with without within about above across after against along among around
    as before behind below beneath beside besides between beyond down during inside near next off out outside
    over past through toward towards under up upon via and or but nor so yet if because although though while
    where who whom whose which that than then there here is are was were be been being am has have had do does
    did can could may might must shall should will would not i you he she it we they them him us me also too
    very just only even still both either neither when what why how all such same appears appear seems seem
    looks look stands stand sits sit lies lie rests rest hangs hang holds hold wears wear contains contain
    includes include shows show depicts depict features feature surrounds surrounded placed located parked
    visible filled covered made dressed positioned seated arranged captured taken
"""
_CLOSERS = frozenset(_LISTED_CLOSERS.split())
# Nouns that name no thing one could point at: places in a picture, amounts, kinds.
_LISTED_NO_THINGS = """
    image picture photo photograph scene view shot frame background foreground middle center centre left right
    top bottom side sides front back rear edge corner area part parts portion bit lot lots number amount variety
    group row pair set couple piece pieces kind kinds type types sort sorts way one ones thing things something
    someone everything color colour colors colours shape size style day time moment distance position presence
    atmosphere mood sense addition fact example case sight focus total detail details arrangement activity line
"""
_NO_THINGS = frozenset(_LISTED_NO_THINGS.split())
# A plural without an opener is taken for a noun if at most so many words stand together.
_BARE_WORDS = 3
_PARTICIPLE = re.compile(r"\w{3,}ing")
_LISTED_NOUNS_IN_ING = """
    building ceiling railing wing ring king string painting clothing earring awning siding
"""
_NOUNS_IN_ING = frozenset(_LISTED_NOUNS_IN_ING.split())
_PLAIN_S = ("ss", "us", "is", "ous")
_IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "knives": "knife",
    "shelves": "shelf",
    "leaves": "leaf",
    "loaves": "loaf",
    "wolves": "wolf",
    "calves": "calf",
    "scarves": "scarf",
    "buses": "bus",
    "glasses": "glasses",
    "sunglasses": "sunglasses",
    "scissors": "scissors",
    "jeans": "jeans",
    "pants": "pants",
    "shorts": "shorts",
    "skis": "ski",
}


def find_mentions(text: str) -> list[FoundMention]:
    """The nouns of an English text that name a thing, by a small rule: the last word of every noun phrase.

    A phrase opens behind an article, a number or a possessive, and ends before the next preposition, verb of the common
    ones, conjunction or mark; "of" closes one and opens another ("a piece of broccoli"). Adjectives in front of a noun
    do not belong to the mention. Plurals are found without an opener, too ("surrounded by trees"). The rule knows
    English only and no dictionary: it finds most things and errs on some.
    """
    found: list[FoundMention] = []
    phrase: list[re.Match[str]] = []
    open_phrase = False
    for token in [*_TOKEN.finditer(text), None]:
        word = "" if token is None else token[0].lower().replace("’", "'")
        ends = token is None or not word[0].isalnum() or word in _CLOSERS or _is_participle(word, bool(phrase))
        if word in _OPENERS:
            _close(phrase, open_phrase, found)
            phrase, open_phrase = [], True
        elif ends:
            _close(phrase, open_phrase, found)
            # "a piece of broccoli": what follows belongs to the phrase that is open.
            phrase, open_phrase = [], open_phrase and bool(phrase) and word == "of"
        elif token is not None:
            phrase.append(token)
    return found


def word_finder(words: Mapping[str, str] | Iterable[str]) -> MentionFinder:
    """A finder of the words of a list, also in the plural, longest first, whole words only.

    Args:
        words: things in the singular ("dog", "dining table"), or a mapping from words as they may be written to the
            thing they name.

    Raises:
        ValueError: there is no word.
    """
    named = dict(words) if isinstance(words, Mapping) else {word: word for word in words}
    named = {word.lower(): noun for word, noun in named.items() if word.strip()}
    if not named:
        raise ValueError("the list of words to look for is empty")
    forms = {form: noun for word, noun in named.items() for form in plural_forms(word)} | named
    longest = sorted(forms, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest))})(?![\w-])", re.IGNORECASE)

    def find(text: str) -> list[FoundMention]:
        return [FoundMention(forms[match[0].lower()], *match.span()) for match in pattern.finditer(text)]

    return find


def singular_of(word: str) -> str:
    """The singular of an English noun, by rules."""
    lowered = word.lower()
    if lowered in _IRREGULAR:
        return _IRREGULAR[lowered]
    if len(lowered) < 4 or not lowered.endswith("s") or lowered.endswith(_PLAIN_S):
        return lowered
    if lowered.endswith("ies") and len(lowered) > 4:
        return f"{lowered[:-3]}y"
    if lowered.endswith(("ches", "shes", "xes", "sses", "oes")):
        return lowered[:-2]
    return lowered[:-1]


def plural_forms(word: str) -> list[str]:
    """How the plural of an English noun may be written."""
    irregular = [plural for plural, singular in _IRREGULAR.items() if singular == word]
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return [*irregular, f"{word[:-1]}ies"]
    if word.endswith(("s", "x", "ch", "sh")):
        return [*irregular, f"{word}es"]
    return [*irregular, f"{word}s", f"{word}es"] if word.endswith("o") else [*irregular, f"{word}s"]


def _close(phrase: list[re.Match[str]], opened: bool, found: list[FoundMention]) -> None:
    """Take the noun out of a phrase that has ended."""
    if not phrase:
        return
    noun = phrase[-1]
    word = noun[0].lower()
    plural = singular_of(word) != word
    names_thing = not word.isdigit() and not {word, singular_of(word)} & _NO_THINGS
    if names_thing and (opened or (plural and len(phrase) <= _BARE_WORDS)):
        found.append(FoundMention(singular_of(word), noun.start(), noun.end()))


def _is_participle(word: str, behind_words: bool) -> bool:
    """A word in -ing behind a noun ("a man riding"), which is no noun itself."""
    return behind_words and bool(_PARTICIPLE.fullmatch(word)) and word not in _NOUNS_IN_ING
