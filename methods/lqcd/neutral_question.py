"""A question without what suggests its answer, by rules.

Leading query contrastive decoding compares a leading question with its neutral form. The paper has a language model
rewrite it; these rules need none, know English only, and leave alone what they do not recognise.
"""

import re

# A sentence that states something about the answer.
_CLAIM = re.compile(
    r"\b(?:in my (?:opinion|view)\b|if you ask me\b|everyone (?:knows|agrees)\b|as (?:we all know|everyone knows)\b"
    r"|(?:expert|doctor|teacher|friend|colleague|professor|photographer)s?\b[^.?!]*\b"
    r"(?:says?|said|thinks?|claims?|told|confirms?|confirmed|agrees?|believes?)\b"
    r"|the (?:right |correct |true )?answer (?:is|should be|must be|has to be|was|will be)\b"
    r"|surely\b|obviously\b|clearly\b|of course\b)",
    re.IGNORECASE,
)
# An opinion, which may end as a question ("I don't think so, are you sure?").
_OPINION = re.compile(
    r"^\W*(?:but |and |so |well,? )*i(?:'m| am| was)? "
    r"(?:(?:really|do|don't|do not|strongly|quite|pretty|fairly|almost|already|firmly|can't|cannot) )*"
    r"(?:think|believe|guess|bet|suspect|doubt|assume|suppose|know|feel|sure|certain|confident|convinced|expect)\b",
    re.IGNORECASE,
)
# A question that only puts pressure on the answer.
_PRESSURE = re.compile(
    r"^\W*(?:are you (?:really |quite )?(?:sure|certain)|is(?:n't)? that (?:right|correct|so))\b", re.I
)
_TAG = re.compile(
    r"^(?P<statement>.+?),\s*(?P<auxiliary>is|are|was|were|do|does|did|has|have|had|can|could|will|would|should)"
    r"(?P<negated>n't)?\s+(?:there|it|he|she|they|you|we|this|that|one)\s*\?$",
    re.IGNORECASE | re.DOTALL,
)
_RIGHT = re.compile(r",\s*(?:right|correct|yes|no|okay|huh|don't you think)\s*\?$", re.IGNORECASE)
_SENTENCE = re.compile(r"\s*(?:[^.?!\n]|[.?!](?=\S))+(?:[.?!]+(?=\s|$)|\n|$)|\s+")
# What a chat format puts in front of a turn without special tokens.
_ROLE = re.compile(r"^\s*(?:USER|HUMAN|ASSISTANT|SYSTEM|Question)\s*:\s*")


def neutralise(text: str) -> str:
    """The text without what suggests an answer, by rules; text without a cue comes back unchanged.

    Sentence by sentence: an opinion, an appeal to an authority, or a claim about the answer goes ("I think the answer
    is yes.", "An expert says ...", "Are you sure?"). A statement with a tag ("There is a dog, isn't there?") goes
    where another question is asked, and is turned into that question where it is the only one ("Is there a dog?").
    If nothing would be left, the text stays as it is. The rules know English only.
    """
    pieces = _SENTENCE.findall(text)
    asks = [piece.rstrip().endswith("?") and not _is_leading(piece) for piece in pieces]
    kept = []
    for piece in pieces:
        role = _ROLE.match(piece)
        prefix, body = (role.group(), piece[role.end() :]) if role else ("", piece)
        if not _is_leading(body):
            kept.append(piece)
            continue
        question = "" if any(asks) else _as_question(body)
        # The space in front of a sentence goes with it; a line break behind it stays.
        kept.append(prefix + question + ("\n" if piece.endswith("\n") else ""))
    result = "".join(kept)
    words = _ROLE.sub("", result).strip()
    return result if words and result != text else text


def _is_leading(sentence: str) -> bool:
    stripped = _ROLE.sub("", sentence).strip()
    if _OPINION.search(stripped) or _PRESSURE.search(stripped) or _TAG.match(stripped) or _RIGHT.search(stripped):
        return True
    return not stripped.endswith("?") and bool(_CLAIM.search(stripped))


def _as_question(sentence: str) -> str:
    """The open question inside a tag question, with the white space in front of it; empty where there is none."""
    space = sentence[: len(sentence) - len(sentence.lstrip())]
    tag = _TAG.match(sentence.strip())
    if tag is None:
        return ""
    auxiliary = tag["auxiliary"].lower()
    found = re.search(rf"\b{auxiliary}(?:n't| not)?\b\s*", tag["statement"], re.IGNORECASE)
    if found is None:
        return ""
    rest = (tag["statement"][: found.start()] + tag["statement"][found.end() :]).strip()
    return f"{space}{auxiliary.capitalize()} {rest[:1].lower()}{rest[1:]}?"
