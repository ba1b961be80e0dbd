"""Which words of a text name a thing, as the command line says it: a rule, MSCOCO's objects, or a file of words."""

from pathlib import Path

from vlm_guard.eval.tasks.chair.scoring import read_caption
from vlm_guard.grounding.mention import FoundMention, MentionFinder
from vlm_guard.grounding.nouns import find_mentions, word_finder

NOUNS, COCO = "nouns", "coco"


def coco_mentions(text: str) -> list[FoundMention]:
    """MSCOCO's objects that a text mentions, by CHAIR's reader: a finder of mentions."""
    return [FoundMention(mention.node, mention.start, mention.end) for mention in read_caption(text).mentions]


def finder_named(words: str) -> MentionFinder:
    """The finder of mentions that `--words` names: nouns, coco, or a file with one word a line.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is no text, or has no word.
    """
    if words == NOUNS:
        return find_mentions
    if words == COCO:
        return coco_mentions
    file = Path(words)
    if not file.is_file():
        raise FileNotFoundError(f"--words is {words!r}: neither {NOUNS} nor {COCO}, and no file of that name")
    try:
        listed = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error.reason}); give a file with one word a line") from None
    return word_finder([line.strip() for line in listed if line.strip()])
