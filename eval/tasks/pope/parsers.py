"""Reading yes or no out of a model's answer: five published ways that do not agree, by name, and our strict one."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Answer = Literal["yes", "no", "unparsed"]

_FIRST_WORD = re.compile(r"[\W_]*(yes|no)(?![\w'’])", re.IGNORECASE)


def _strict(text: str, label: str | None) -> Answer:
    match = _FIRST_WORD.match(text)
    if match is None:
        return "unparsed"
    return "yes" if match.group(1).lower() == "yes" else "no"


def _pope(text: str, label: str | None) -> Answer:
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def _opera(text: str, label: str | None) -> Answer:
    words = text.replace(".", "").replace(",", "").split(" ")
    negative = any(word in ("No", "not", "no", "NO") or word.endswith("n't") for word in words)
    return "no" if negative else "yes"


def _vcd(text: str, label: str | None) -> Answer:
    if label not in ("yes", "no"):
        raise ValueError(
            f"the parser 'vcd' depends on the right answer, so it needs the label yes or no, not {label!r}"
        )
    said = label in text.lower()
    return "yes" if said == (label == "yes") else "no"


PARSERS: dict[str, Callable[[str, str | None], Answer]] = {
    "strict": _strict,
    "pope": _pope,
    "opera": _opera,
    "vcd": _vcd,
}


def parse_answer(text: str, parser: str = "strict", label: str | None = None) -> Answer:
    """What an answer says, by one of the parsers of `PARSERS`.

    - `strict`: the first word, in any case and behind any punctuation, is yes or no; all else is `unparsed`.
    - `pope` (Li et al., EMNLP 2023, evaluate.py): "No", "no" or "not" among the words before the first full stop is
      no; everything else is yes, also an empty answer.
    - `opera` (OPERA, PAI): "No", "no", "NO", "not" or a word in -n't anywhere is no; everything else is yes.
    - `vcd` (VCD, SHIELD, AGLA): asks only whether the right answer occurs anywhere in the text, as a part of any
      word: "I don't know" is a right no, and an answer with neither is always wrong.

    The last three never return `unparsed`.

    Args:
        text: the model's answer.
        parser: name of the parser.
        label: the right answer, needed by `vcd` only.

    Raises:
        ValueError: the parser is unknown, or `vcd` gets no label.
    """
    if parser not in PARSERS:
        raise ValueError(f"the answer parser is {parser!r}; it must be one of {', '.join(PARSERS)}")
    return PARSERS[parser](text, label)


_SPELLINGS = {"yes": ("yes", "Yes", " yes", " Yes"), "no": ("no", "No", " no", " No")}


def yes_no_token_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids a tokenizer has for yes and for no, over upper and lower case and a leading space.

    The ids must come from the model's own tokenizer: those of LLaMA-2 score 0 on Mistral and Qwen.

    Args:
        tokenizer: anything with `encode(text, add_special_tokens=False) -> list[int]`.

    Raises:
        ValueError: one of the words is no single token in any spelling, or both share a token.
    """
    ids = {}
    for word, spellings in _SPELLINGS.items():
        encoded = [list(tokenizer.encode(spelling, add_special_tokens=False)) for spelling in spellings]
        ids[word] = sorted({tokens[0] for tokens in encoded if len(tokens) == 1})
        if not ids[word]:
            raise ValueError(
                f"the tokenizer has no single token for {word!r} in any of the spellings {spellings}; read the answer "
                "from generated text instead (parser 'strict')"
            )
    if shared := set(ids["yes"]) & set(ids["no"]):
        raise ValueError(f"the tokenizer encodes yes and no as the same token {sorted(shared)}, perhaps as unknown")
    return ids["yes"], ids["no"]


def token_readout(
    logits: "torch.Tensor", yes_ids: Iterable[int], no_ids: Iterable[int]
) -> tuple[list[Answer], "torch.Tensor"]:
    """Answers read from the logits of the first generated token instead of from text.

    Args:
        logits: (B, V), the logits of the first generated position.
        yes_ids: tokens for yes (`yes_no_token_ids`).
        no_ids: tokens for no.

    Returns:
        One answer per row, yes where the largest yes logit is above the largest no logit; and the margin between
        the two, (B,), positive for yes. A tie counts as no.

    Raises:
        ValueError: the logits do not have two dimensions.
    """
    if logits.ndim != 2:
        raise ValueError(f"the logits must have the shape (B, V), not {tuple(logits.shape)}")
    yes = logits[:, list(yes_ids)].amax(dim=-1)
    no = logits[:, list(no_ids)].amax(dim=-1)
    margin = yes - no
    return ["yes" if value > 0 else "no" for value in margin.tolist()], margin
