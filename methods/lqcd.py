"""LQCD: leading query contrastive decoding (Towards Analyzing and Mitigating Sycophancy in LVLMs, arXiv 2408.11261).

A question that suggests its answer ("I think the answer is yes") pulls the model along. LQCD answers the neutral form
of the question and moves away from what the leading form adds.

Station: logits, with x_n the neutral and x_l the leading query on the same picture v:

  p(y) = softmax[(1 + strength) logit(y | x_n, v) - strength logit(y | x_l, v)]

on tokens plausible under the neutral query. The prompt given to `generate` is the leading one; the branch is the
positive one, with the text passed through a neutraliser, a plain function from text to text. Only a row that the
neutraliser changes is contrasted: a neutral question is answered as without LQCD.

The paper has a language model rewrite the query; its prompt, the strengths and the leading templates were not to be
found, nor the formula of the later version's sentiment scaler, which is therefore left out. Defaults (strength 1,
plausibility 0.1) are those of contrast decoding at large. The default neutraliser works by rules: see `neutralise`.
Give a function of your own, or its import path ("package.module:function"), as `neutraliser`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from vlm_guard.contrast import Branch, ContrastCall, contrast_logits
from vlm_guard.guard import GuardTarget
from vlm_guard.method import Method, option, register

RULES = "rules"

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


@register("lqcd")
@dataclass(frozen=True, kw_only=True)
class LQCD(Method):
    """Answer the neutral form of a leading question, away from what the leading form suggests."""

    title = "LQCD"
    paper = "Towards Analyzing and Mitigating Sycophancy in Large Vision-Language Models, arXiv 2408.11261"
    stations = ("logits",)
    needs = ("processor", "second branch")

    strength: float = option(
        1.0,
        help="how far to move away from the leading query's logits",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha, value not found; 1 as in VCD",
    )
    plausibility: float = option(
        0.1,
        help="tokens less than this times as probable as the best under the neutral query are ruled out",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="beta, value not found; 0.1 as in VCD",
    )
    neutraliser: str | Callable[[str], str] = option(  # noqa: RUF009
        RULES,
        help="'rules', the import path of a function from text to text, or such a function",
        paper="a language model in the paper",
    )

    def prepare(self, target: GuardTarget) -> Callable[[str], str]:
        """The neutraliser as a function.

        Raises:
            ValueError: the import path does not lead to a function.
        """
        return find_neutraliser(self.neutraliser)

    def contrasts(self) -> bool:
        """Strength 0 switches the second branch off."""
        return self.strength > 0

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The neutral query, as the positive branch."""
        prompt = call.prompt.with_rewritten_text(call.tokenizer, call.prepared)
        return Branch(prompt=prompt, images="same", sign="positive", active=prompt.changed)

    def combine_logits(self, positive: Tensor, negative: Tensor, step: int) -> Tensor:
        """(1 + strength) neutral - strength leading, on tokens plausible under the neutral query."""
        return contrast_logits(positive, negative, self.strength, self.plausibility)

    def describe(self) -> dict[str, Any]:
        """Name and options; a function is described by its import path."""
        description = super().describe()
        if callable(self.neutraliser):
            function = self.neutraliser
            path = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', repr(function))}"
            description["options"]["neutraliser"] = path
        return description


def find_neutraliser(given: str | Callable[[str], str]) -> Callable[[str], str]:
    """A neutraliser from "rules", an import path such as "package.module:function", or a function.

    Raises:
        ValueError: the path does not lead to a function.
    """
    if callable(given):
        return given
    if given == RULES:
        return neutralise
    module, colon, name = given.partition(":")
    try:
        function = getattr(import_module(module), name) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"lqcd: cannot import the neutraliser {given!r}: {error}") from error
    if not callable(function):
        raise ValueError(f"lqcd: neutraliser is {given!r}; allowed: 'rules' or 'package.module:function'")
    return function


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
