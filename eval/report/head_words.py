"""The short heads of tables in a sentence each; docs/glossary.md has them under the same names."""

from collections.abc import Iterable

HEAD_WORDS = {
    "repeat": "the share of a caption's runs of four words that stood in it before, as a mean over captions",
    "adv F1": "F1 on POPE's adversarial questions alone: absent objects that often stand beside those in the picture",
    "yes": "the share of answers that were read as yes",
    "unparsed": "the share of answers in which neither yes nor no was found",
    "cut off": "answers that ended at the token limit",
}


def head_sentences(labels: Iterable[str]) -> list[str]:
    """A sentence for every head that is no plain word, each once.

    Args:
        labels: heads as tables show them, with or without their arrow.
    """
    heads = dict.fromkeys(label.rstrip(" ↑↓") for label in labels)
    return [f'"{head}": {HEAD_WORDS[head]}.' for head in heads if head in HEAD_WORDS]
