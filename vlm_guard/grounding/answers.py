"""Answers with a score for every thing they mention."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor

from vlm_guard.grounding.answer_text import answer_rows, token_spans
from vlm_guard.grounding.boxes import box_around_peak, images_by_row
from vlm_guard.grounding.lens import PromptLens, VisualStates, spellings
from vlm_guard.grounding.mention import FoundMention, Mention, MentionFinder, Verdict
from vlm_guard.grounding.nouns import find_mentions
from vlm_guard.grounding.presence import QUESTION, self_check
from vlm_guard.grounding.repair import Repaired, drop_doubtful
from vlm_guard.grounding.rewrite import Rewriter
from vlm_guard.grounding.score import THRESHOLD, score_of, weights_of
from vlm_guard.grounding.shared_prompt import read_alone, require_prompt
from vlm_guard.method.model_inputs import TOKEN_TYPES, image_inputs
from vlm_guard.method.visual_tokens import visual_mask
from vlm_guard.runtime.generate_arguments import generate_arguments

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

Part = Literal["lens", "self_check", "position"]
PARTS: tuple[Part, ...] = get_args(Part)
Repair = Literal["drop", "rewrite"]
REPAIRS: tuple[Repair, ...] = get_args(Repair)


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """How mentions are found and scored.

    Attributes:
        parts: what is measured of every mention. "lens": what the picture's own tokens say (`PromptLens`);
            "self_check": whether the plain model says that the thing is there (`self_check`); "position": minus the
            number of its first token, which measures nothing but how late it comes.
        find: from a text to its mentions; by default nouns by an English rule.
        question: of the self-check, with `{noun}`.
        threshold: a mention with at least this score is grounded.
        repair: "drop" takes doubtful mentions out by rules, a sentence as a whole where no rule can cut it; "rewrite"
            lets the model write such a sentence once more, without them. None leaves answers as they are.
        lens_layers: the layers that the lens reads, see `lens_layers`; None for the default.
    """

    parts: tuple[Part, ...] = ("lens", "self_check")
    find: MentionFinder = find_mentions
    question: str = QUESTION
    threshold: float = THRESHOLD
    repair: Repair | None = None
    lens_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"grounding parts are {list(self.parts)}; allowed: {', '.join(PARTS)}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"the threshold of grounding is {self.threshold}; allowed: 0 to 1")
        if self.repair is not None and self.repair not in REPAIRS:
            raise ValueError(f"repair is {self.repair!r}; allowed: {', '.join(REPAIRS)}, or None")


@dataclass(frozen=True, kw_only=True)
class GroundedAnswer:
    """An answer with its mentions.

    Attributes:
        text: the answer, without special tokens and surrounding blanks.
        mentions: in order.
        repaired: the answer after its repair, where one was asked for.
    """

    text: str
    mentions: list[Mention] = field(default_factory=list)
    repaired: Repaired | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """An answer that has been read: its text, and its mentions with the tokens that spell them."""

    prompt: int
    ids: list[int]
    text: str
    found: list[FoundMention]
    tokens: list[tuple[int, int]]


def ground(
    guard: "Guard",
    inputs: Mapping[str, Any],
    sequences: Tensor,
    settings: Grounding | None = None,
    *,
    states: VisualStates | None = None,
    generate: Callable[..., Any] | None = None,
) -> list[GroundedAnswer]:
    """Score the mentions of answers that exist; the plain model is asked, whatever methods the answers came from.

    Args:
        guard: of the model; it needs the processor.
        inputs: of `generate`, with `input_ids` [B, P] and the pictures.
        sequences: [N, P + T] or [N, T] ids of the answers, N a multiple of B.
        settings: what is measured; the defaults if None.
        states: hidden states of these prompts' visual tokens, where they have been kept already.
        generate: what writes sentences again (`repair="rewrite"`); by default the guard's.

    Raises:
        ValueError: no processor, or a part that this family does not have; the message says which and why.
    """
    settings = settings or Grounding()
    prompt = require_prompt(guard, inputs, "grounding")
    ids = answer_rows(sequences, prompt.input_ids, guard.target.model)
    repeats = len(ids) // len(prompt.input_ids)
    answers = [_read(guard, row, number // repeats, settings.find) for number, row in enumerate(ids)]
    with_image = prompt.has_image.tolist()
    nouns: list[list[str]] = [[] for _ in with_image]
    for answer in answers:
        if with_image[answer.prompt]:
            nouns[answer.prompt] += [found.noun for found in answer.found if found.noun not in nouns[answer.prompt]]
    if states is None and "lens" in settings.parts:
        states = VisualStates.of(guard.target.architecture, settings.lens_layers)
    measured = _Measured.of(guard, inputs, nouns, settings, states)
    weights = _weights(guard, settings)
    scored = [
        GroundedAnswer(
            text=answer.text,
            mentions=[
                _mention(guard, answer, index, measured, settings, weights) for index in range(len(answer.found))
            ],
        )
        for answer in answers
    ]
    if settings.repair is None:
        return scored
    if settings.repair == "drop":
        repaired = [drop_doubtful(answer.text, answer.mentions) for answer in scored]
    else:
        only_scored = replace(settings, repair=None)

        def score(ids: Tensor) -> list[list[Mention]]:
            return [answer.mentions for answer in ground(guard, inputs, ids, only_scored, states=states)]

        rewriter = Rewriter(guard, prompt, inputs, generate or guard.generate, score)
        repaired = rewriter.repair([answer.text for answer in scored], [answer.mentions for answer in scored])
    return [replace(answer, repaired=mended) for answer, mended in zip(scored, repaired, strict=True)]


def grounded_generate(
    guard: "Guard", method: Any, args: tuple, kwargs: Mapping[str, Any], grounding: Grounding | bool
) -> Any:
    """`guard.generate` with mentions; see there."""
    settings = grounding if isinstance(grounding, Grounding) else Grounding()
    model: Any = guard.target.model
    args, named = generate_arguments(guard.target, model.generate, args, dict(kwargs))
    require_prompt(guard, named, "grounding")
    states = None
    if "lens" in settings.parts:
        states = VisualStates.of(guard.target.architecture, settings.lens_layers)
    plain = _is_plain(guard, method) and "guard" not in named
    with guard.reading.holding():
        recording = nullcontext()
        if states is not None and plain:
            # The plain model's own reading of the prompt serves the lens; under a method it is read once more.
            recording = states.recording(guard.target.architecture, named["input_ids"])
        with recording:
            output = guard.generate(*args, method=method, **{**named, "return_dict_in_generate": True})
        again = partial(guard.generate, method=method)
        answers = ground(guard, named, output.sequences, settings, states=states, generate=again)
    output.repaired = [answer.repaired for answer in answers]
    output.mentions = [answer.mentions for answer in answers]
    output.texts = [answer.text for answer in answers]
    return output


def _is_plain(guard: "Guard", method: Any) -> bool:
    if method is None:
        return all(bound.method.name == "none" for bound in guard.methods)
    return isinstance(method, str) and method.strip() == "none"


def _read(guard: "Guard", ids: list[int], prompt: int, find: MentionFinder) -> _Read:
    text, spans = token_spans(guard.target.processor.tokenizer, ids)
    found = sorted(find(text), key=lambda mention: mention.start)
    tokens = []
    for mention in found:
        if not 0 <= mention.start < mention.end <= len(text):
            raise ValueError(
                f"the finder of mentions gave {mention!r}, which lies outside of a text of {len(text)} characters"
            )
        mine = [n for n, (start, end) in enumerate(spans) if start < mention.end and end > mention.start]
        tokens.append((mine[0], mine[-1] + 1) if mine else (0, 0))
    return _Read(prompt=prompt, ids=ids, text=text, found=found, tokens=tokens)


@dataclass(kw_only=True, eq=False)
class _Measured:
    """What was measured of a batch: the lens, and the self-check of every noun of every prompt."""

    asked: list[dict[str, float]]
    lens: PromptLens | None
    images: list[list[Any]]

    @classmethod
    def of(
        cls,
        guard: "Guard",
        inputs: Mapping[str, Any],
        nouns: Sequence[Sequence[str]],
        settings: Grounding,
        states: VisualStates | None,
    ) -> "_Measured":
        wanted = None if states is None or states.complete else states
        asked: list[dict[str, float]] = [{} for _ in nouns]
        if not any(nouns):
            return cls(asked=asked, lens=None, images=[[] for _ in nouns])
        if "self_check" in settings.parts:
            values = self_check(guard, inputs, nouns, question=settings.question, states=wanted)
            asked = [dict(zip(row, value, strict=True)) for row, value in zip(nouns, values)]
        elif wanted is not None:
            prompt = require_prompt(guard, inputs, "the lens")
            read_alone(guard, {**_model_inputs(inputs), "attention_mask": prompt.attention_mask}, wanted)
        if states is None:
            return cls(asked=asked, lens=None, images=[[] for _ in nouns])
        visual = visual_mask(inputs["input_ids"], guard.target.architecture.visual_token_ids)
        lens = PromptLens(states, guard, len(nouns))
        return cls(asked=asked, lens=lens, images=images_by_row(guard.target.model, inputs, visual))


def _model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` was given for the model, without how to generate."""
    kept = {name: inputs[name] for name in ("input_ids", *TOKEN_TYPES) if isinstance(inputs.get(name), Tensor)}
    return image_inputs(inputs) | kept


def _mention(
    guard: "Guard",
    answer: _Read,
    index: int,
    measured: _Measured,
    settings: Grounding,
    weights: Mapping[str, float] | None,
) -> Mention:
    found, (first, last) = answer.found[index], answer.tokens[index]
    text = answer.text[found.start : found.end]
    parts: dict[str, float] = {}
    box = None
    ways: list[list[int]] = []
    if found.noun in measured.asked[answer.prompt]:
        parts["self_check"] = measured.asked[answer.prompt][found.noun]
    if measured.lens is not None and bool((measured.lens.rows == answer.prompt).any()):
        tokenizer = guard.target.processor.tokenizer
        ways = spellings(
            text, found.noun, lambda word: tokenizer.encode(word, add_special_tokens=False), answer.ids[first:last]
        )
        parts["lens"] = measured.lens.log_prob(answer.prompt, ways)
        box = box_around_peak(measured.lens.patch_log_probs(answer.prompt, ways), measured.images[answer.prompt])
    if parts and "position" in settings.parts:
        parts["position"] = -float(first)
    ordered = {part: parts[part] for part in settings.parts if part in parts}
    score = score_of(ordered, weights) if len(ordered) == len(settings.parts) else None
    verdict: Verdict = "unchecked" if score is None else "grounded" if score >= settings.threshold else "doubtful"
    return Mention(
        text=text,
        noun=found.noun,
        start=found.start,
        end=found.end,
        token_span=(first, last),
        score=score,
        verdict=verdict,
        parts=ordered,
        box=box,
    )


def _weights(guard: "Guard", settings: Grounding) -> dict[str, float] | None:
    weights = weights_of(guard.target.profile, settings.parts)
    if weights is None and {"lens", "self_check"} & set(settings.parts):
        guard.reading.say(
            "no profile says how far the grounding scores of this model can be trusted: they are taken as they are; "
            f"the threshold {settings.threshold} was not measured; 'vlm-guard eval --task grounding' measures both"
        )
    return weights
