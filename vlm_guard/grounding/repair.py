"""Answers without what the picture does not support, by rules that leave English sentences whole.

Sentence by sentence:
  every mention fails                 the sentence goes;
  some are, as items of a list        the items are cut out with their comma or conjunction ("a dog, a cat and a car");
  all items behind "with" are         the phrase with "with" is cut off;
  anything else                       the sentence goes (or, with `rewrite`, is decoded again first).

A list is cut only where the rest is sure to be a sentence that says nothing new: its verb is made to agree, and an item
that something else hangs on ("a cat that sleeps") stays, so that the sentence goes as a whole. The rules know English
only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlm_guard.grounding.mention import Mention
from vlm_guard.grounding.nouns import find_mentions, singular_of

# A point behind a title or the number of a list ends no sentence.
_INSIDE = r"[^.?!\n]|[.?!](?=\S)|(?:(?<=\bMr)|(?<=\bMrs)|(?<=\bDr)|(?<=\bSt)|(?<=^\d)|(?<=^\d\d))\."
_SENTENCE = re.compile(rf"\S(?:{_INSIDE})*(?:[.?!]+[\"'”’)]*|$|(?=\n))", re.MULTILINE)
_DETERMINERS = (
    "an?|the|some|any|another|several|many|few|two|three|four|five|six|seven|eight|nine|ten|his|her|its|their|one"
)
_MEASURES = (
    r"(?:an?|two|three|some|several)\s+(?:pairs?|pieces?|slices?|bunch|group|set|row|stack|bowls?|plates?)\s+of\s+"
)
# An adjective or the first part of a compound, but nothing that would begin another phrase.
_ATTRIBUTE = rf"(?!(?:{_DETERMINERS}|and|or|of|in|on|at|with|to|by|from|for|as|is|are|was|were)\b)[\w'’-]+\s+"
_ITEM = rf"(?:{_MEASURES}(?:(?:{_DETERMINERS})\s+)?|(?:{_DETERMINERS})\s+)(?:{_ATTRIBUTE}){{0,3}}"
_SEPARATOR = re.compile(r"\s*,\s*(?:and|or)\s+|\s*,\s*|\s+(?:and|or|as well as)\s+")
_SINGULAR = re.compile(r"(?:an?|another|one|the|his|her|its|their)\b", re.IGNORECASE)
_BE = {"is": "are", "are": "is", "was": "were", "were": "was"}
_BE_BEFORE = re.compile(r"\b(is|are|was|were)\s+(?:also\s+|only\s+)?$", re.IGNORECASE)
_BE_BEHIND = re.compile(r"\s+(is|are|was|were)\b", re.IGNORECASE)
# What may follow a list without hanging on its last item.
_OF_THE_WHOLE = re.compile(
    r"\s*(?:$|[.?!;,]|(?:in|on|at|across|throughout|around)\s+the\s+"
    r"(?:image|picture|photo|photograph|scene|frame|background|foreground|left|right|middle|cent(?:er|re)|top|bottom)\b"
    r"|(?:is|are|was|were|can|could|may|might|must|will)\b|(?:visible|present)\b)"
)
# A verb that is the same for one and for many.
_MODAL = re.compile(r"\s*(?:can|could|may|might|must|will)\b")
# The rest of a caption without a verb ("A dog and a cat in a garden.").
_ONLY_PLACE = re.compile(
    r"\s*(?:in|on|at|near|next to|in front of)\s+(?:(?!\b(?:is|are|was|were|that|which|who)\b)[^.,;])*[.!]?$"
)
# Behind these words every item of a list stands by itself; other prepositions may belong to what is in front of them.
_FREE = re.compile(
    r"(?:\b(?:with|of|including|shows?|features?|contains?|depicts?|has|have|see|also|is|are|was|were)|:|^)\s*$", re.I
)
# Behind "there is" what follows a list says where all of it is.
_THERE = re.compile(r"\bthere\s+(?:is|are|was|were)\s+(?:also\s+|only\s+)?$", re.IGNORECASE)
_PLACE = re.compile(r"\s*(?:in|on|at|near|next to|in front of|behind|under|beside|above)\b")
_MORE_ITEMS = re.compile(
    rf"(?:\s*,\s*(?:and\s+|or\s+)?|\s+(?:and|or|as well as)\s+)(?:{_DETERMINERS})\b", re.IGNORECASE
)
_WITH = re.compile(r"\s*,?\s+with\s+$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What a repair took out.

    Attributes:
        text: the words.
        start, end: their characters in the answer before the repair.
        nouns: the doubtful things among them.
        how: "sentence", "item", "phrase", or "rewritten" where other words took their place.
    """

    text: str
    start: int
    end: int
    nouns: tuple[str, ...]
    how: str


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """An answer after its repair.

    Attributes:
        text: what is left; empty where nothing is.
        removed: what was taken out, in order.
        below: what scored less was taken out; None where something else decided.
    """

    text: str
    removed: tuple[Removed, ...] = ()
    below: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence of an answer, and what became of it.

    Attributes:
        start, end: its characters in the answer.
        text: what stands in its place; empty where it went.
        removed: what was taken out.
        unclean: whether it went as a whole because no rule could cut it.
    """

    start: int
    end: int
    text: str
    removed: tuple[Removed, ...] = ()
    unclean: bool = False


def to_take_out(mentions: Sequence[Mention], below: float) -> list[Mention]:
    """Mentions with the verdict "doubtful" where their score is below a limit, and "grounded" elsewhere."""
    return [
        replace(mention, verdict="doubtful" if mention.score is not None and mention.score < below else "grounded")
        for mention in mentions
    ]


def drop_doubtful(text: str, mentions: Sequence[Mention]) -> Repaired:
    """The answer without its doubtful mentions.

    Args:
        text: the answer.
        mentions: of it, with verdicts; "unchecked" ones count as grounded.
    """
    return joined(text, repaired_sentences(text, mentions))


def repaired_sentences(text: str, mentions: Sequence[Mention]) -> list[Sentence]:
    """Every sentence of an answer after the rules."""
    return [_repair(text, match.start(), match.end(), mentions) for match in _SENTENCE.finditer(text)]


def first_sentence(text: str) -> str:
    """The first sentence of a text; empty where it does not end with a mark."""
    found = _SENTENCE.search(text)
    return found[0] if found is not None and found[0].rstrip("\"'”’)")[-1:] in tuple(".?!") else ""


def joined(text: str, sentences: Sequence[Sentence]) -> Repaired:
    """The answer made of repaired sentences; what stood between two that stay (a space, a new line) stays."""
    pieces: list[str] = []
    last: int | None = None
    for number, sentence in enumerate(sentences):
        if not sentence.text:
            continue
        if last is not None:
            pieces.append(text[sentences[number - 1].end : sentence.start] or " ")
        pieces.append(sentence.text)
        last = number
    removed = tuple(part for sentence in sentences for part in sentence.removed)
    return Repaired(text="".join(pieces) if removed else text, removed=removed)


def _repair(text: str, start: int, end: int, mentions: Sequence[Mention]) -> Sentence:
    """One sentence after the rules."""
    mine = [mention for mention in mentions if start <= mention.start < end]
    doubtful = [mention for mention in mine if mention.verdict == "doubtful"]
    whole = text[start:end]
    if not doubtful:
        return Sentence(start=start, end=end, text=whole)
    for rule in (_cut_items, _cut_with):
        found = rule(text, start, end, mine)
        if found is not None:
            return found
    nouns = tuple(mention.noun for mention in doubtful)
    gone = Removed(text=whole, start=start, end=end, nouns=nouns, how="sentence")
    return Sentence(start=start, end=end, text="", removed=(gone,), unclean=len(doubtful) < len(mine))


@dataclass(frozen=True, kw_only=True)
class _Item:
    start: int
    end: int
    mentions: tuple[Mention, ...]

    @property
    def fails(self) -> bool:
        return any(m.verdict == "doubtful" for m in self.mentions) and all(
            m.verdict == "doubtful" for m in self.mentions
        )

    @property
    def mixed(self) -> bool:
        return not self.fails and any(m.verdict == "doubtful" for m in self.mentions)


def _lists(text: str, start: int, end: int, mentions: Sequence[Mention]) -> list[list[_Item]]:
    """The lists of a sentence: noun phrases that end with a mention or another noun, between separators only."""
    ends = {mention.end for mention in mentions} | {start + found.end for found in find_mentions(text[start:end])}
    items: list[_Item] = []
    for stop in sorted(ends):
        head = max((m.start for m in mentions if m.end == stop), default=None)
        if head is None:
            head = start + next(found.start for found in find_mentions(text[start:end]) if start + found.end == stop)
        begins = [m for m in re.finditer(rf"\b{_ITEM}$", text[start:head], re.IGNORECASE)]
        begin = (
            start + begins[0].start()
            if begins
            else head
            if singular_of(text[head:stop]) != text[head:stop].lower()
            else None
        )
        if begin is None or (items and begin < items[-1].end):
            continue
        held = tuple(m for m in mentions if begin <= m.start and m.end <= stop)
        items.append(_Item(start=begin, end=stop, mentions=held))
    lists: list[list[_Item]] = []
    for item in items:
        if lists and _SEPARATOR.fullmatch(text, lists[-1][-1].end, item.start):
            lists[-1].append(item)
        else:
            lists.append([item])
    return lists


def _cut_items(text: str, start: int, end: int, mentions: Sequence[Mention]) -> Sentence | None:
    """The sentence without the doubtful items of its lists; None where that is not clean, or is not all of them."""
    edits: list[tuple[int, int, str]] = []
    removed: list[Removed] = []
    for items in _lists(text, start, end, mentions):
        failing = [item for item in items if item.fails]
        if any(item.mixed for item in items):
            return None
        if not failing:
            continue
        kept = [item for item in items if not item.fails]
        if not kept or not _is_clean(text, start, end, items, kept):
            return None
        edits += _list_edits(text, start, end, items, kept)
        removed += [
            Removed(
                text=text[i.start : i.end],
                start=i.start,
                end=i.end,
                nouns=tuple(m.noun for m in i.mentions),
                how="item",
            )
            for i in failing
        ]
    gone = sum(len(part.nouns) for part in removed)
    if gone != sum(mention.verdict == "doubtful" for mention in mentions):
        return None
    return Sentence(start=start, end=end, text=_edited(text, start, end, edits), removed=tuple(removed))


def _is_clean(text: str, start: int, end: int, items: Sequence[_Item], kept: Sequence[_Item]) -> bool:
    before, behind = text[start : items[0].start], text[items[-1].end : end]
    if _MORE_ITEMS.match(behind):
        return False
    of_all = bool(_OF_THE_WHOLE.match(behind)) or bool(_THERE.search(before) and _PLACE.match(behind))
    of_all = of_all or bool(not before.strip() and _ONLY_PLACE.fullmatch(behind))
    if items[-1].fails and not of_all:
        return False
    if items[0].fails and len(items) == 2 and not _FREE.search(before):
        return False
    if len(kept) > 1 or not _starts_clause(before):
        return True
    # The one item that is left is a subject: only forms of "be" are made to agree.
    return bool(_BE_BEHIND.match(behind) or _MODAL.match(behind) or _ONLY_PLACE.fullmatch(behind))


def _starts_clause(before: str) -> bool:
    return not before.strip() or before.rstrip().endswith(",")


def _list_edits(
    text: str, start: int, end: int, items: Sequence[_Item], kept: Sequence[_Item]
) -> list[tuple[int, int, str]]:
    """What takes the place of a list, and of a form of "be" that has to agree with it."""
    words = [text[item.start : item.end] for item in kept]
    if items[0].start == start:
        words[0] = words[0][:1].upper() + words[0][1:]
        words[1:] = [word[:1].lower() + word[1:] for word in words[1:]]
    last = text[items[-2].end : items[-1].start]
    if len(words) == 1:
        whole = words[0]
    else:
        closing = last if re.search(r"\w", last) else ", "
        if len(words) == 2 and closing.lstrip().startswith(",") and re.search(r"\w", closing):
            closing = f" {closing.lstrip().lstrip(',').strip()} "
        whole = ", ".join(words[:-1]) + closing + words[-1]
    edits = [(items[0].start, items[-1].end, whole)]
    plural = len(kept) > 1 or not _is_singular(text, kept[0])
    before, behind = _BE_BEFORE.search(text[start : items[0].start]), _BE_BEHIND.match(text[items[-1].end : end])
    if len(kept) == 1:
        for found, offset in ((before, start), (behind, items[-1].end)):
            if found is not None:
                edits.append((offset + found.start(1), offset + found.end(1), _agreeing(found[1], plural)))
    return edits


def _is_singular(text: str, item: _Item) -> bool:
    words = text[item.start : item.end]
    measured = re.match(_MEASURES, words, re.IGNORECASE)
    if measured:
        return measured[0].split()[0].lower() in ("a", "an")
    noun = words.split()[-1].lower()
    return bool(_SINGULAR.match(words)) and (
        words.split()[0].lower() in ("a", "an", "another", "one") or singular_of(noun) == noun
    )


def _agreeing(verb: str, plural: bool) -> str:
    lowered = verb.lower()
    is_plural = lowered in ("are", "were")
    found = lowered if is_plural == plural else _BE[lowered]
    return found.capitalize() if verb[:1].isupper() else found


def _cut_with(text: str, start: int, end: int, mentions: Sequence[Mention]) -> Sentence | None:
    """The sentence without "with ..." behind which everything is doubtful, where another thing is named before."""
    for items in _lists(text, start, end, mentions):
        before, behind = text[start : items[0].start], text[items[-1].end : end]
        opener = _WITH.search(before)
        if opener is None or not all(item.fails for item in items) or not _OF_THE_WHOLE.match(behind):
            continue
        doubtful = [mention for mention in mentions if mention.verdict == "doubtful"]
        held = [mention for item in items for mention in item.mentions]
        front = text[start : start + opener.start()]
        if len(held) != len(doubtful) or not find_mentions(front) or not re.search(r"\b(?:is|are|shows?|see)\b", front):
            continue
        cut = (start + opener.start(), items[-1].end)
        gone = Removed(
            text=text[slice(*cut)].strip(" ,"),
            start=cut[0],
            end=cut[1],
            nouns=tuple(m.noun for m in held),
            how="phrase",
        )
        return Sentence(start=start, end=end, text=_edited(text, start, end, [(*cut, "")]), removed=(gone,))
    return None


def _edited(text: str, start: int, end: int, edits: Sequence[tuple[int, int, str]]) -> str:
    found, place = [], start
    for begin, stop, words in sorted(edits):
        found += [text[place:begin], words]
        place = stop
    return "".join([*found, text[place:end]])
