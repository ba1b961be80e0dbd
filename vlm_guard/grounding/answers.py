"""Answers with a score for every thing they mention."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlm_guard.families.profiles import Profile
from vlm_guard.grounding.answer_text import answer_rows
from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.lens import VisualStates
from vlm_guard.grounding.measured import Measured, ReadAnswer
from vlm_guard.grounding.mention import Box, Mention, Verdict
from vlm_guard.grounding.repair import drop_doubtful, to_take_out
from vlm_guard.grounding.rewrite import Rewriter
from vlm_guard.grounding.score import not_measured, repair_below_of, score_of, weights_of
from vlm_guard.grounding.settings import Grounding
from vlm_guard.grounding.shared_prompt import AnsweredPrompt, require_prompt
from vlm_guard.runtime.generate_arguments import generate_arguments

if TYPE_CHECKING:
    from vlm_guard.guard import Guard


def ground(
    guard: "Guard",
    inputs: Mapping[str, Any],
    sequences: Tensor,
    settings: Grounding | None = None,
    *,
    states: VisualStates | None = None,
    generate: Callable[..., Any] | None = None,
    answered: AnsweredPrompt | None = None,
) -> list[GroundedAnswer]:
    """Score the mentions of answers that exist; the plain model is asked, whatever methods the answers came from.

    Args:
        guard: of the model; it needs the processor.
        inputs: of `generate`, with `input_ids` [B, P] and the pictures.
        sequences: [N, P + T] or [N, T] ids of the answers, N a multiple of B.
        settings: what is measured; the defaults if None.
        states: hidden states of these prompts' visual tokens, where they have been kept already.
        generate: what writes sentences again (`repair="rewrite"`); by default the guard's.
        answered: the plain model's own `generate` call with these inputs, if the answers come from one.

    Raises:
        ValueError: no processor, or a part that this family does not have; the message says which and why.
    """
    settings = settings or Grounding()
    prompt = require_prompt(guard, inputs, "grounding")
    ids = answer_rows(sequences, prompt.input_ids, guard.target.model)
    repeats = len(ids) // len(prompt.input_ids)
    tokenizer = guard.target.processor.tokenizer
    answers = [ReadAnswer.of(tokenizer, row, number // repeats, settings.find) for number, row in enumerate(ids)]
    with_image = prompt.has_image.tolist()
    nouns: list[list[str]] = [[] for _ in with_image]
    for answer in answers:
        if with_image[answer.prompt]:
            nouns[answer.prompt] += [found.noun for found in answer.found if found.noun not in nouns[answer.prompt]]
    if states is None and "lens" in settings.parts:
        target = guard.target
        states = VisualStates.of(target.architecture, settings.lens_layers, target.profile)
    measured = Measured.of(guard, inputs, answers, nouns, settings, states, answered)
    weights = _weights(guard, settings)
    scored = [
        GroundedAnswer(
            text=answer.text,
            mentions=[
                scored_mention(answer, index, measured.of_mention(number, answer, index), settings, weights)
                for index in range(len(answer.found))
            ],
        )
        for number, answer in enumerate(answers)
    ]
    if settings.repair is None:
        return scored
    below = repair_limit(settings, guard.target.profile)
    taken_out = [to_take_out(answer.mentions, below) for answer in scored]
    if settings.repair == "drop":
        repaired = [drop_doubtful(answer.text, mentions) for answer, mentions in zip(scored, taken_out)]
    else:
        only_scored = replace(settings, repair=None)

        def score(ids: Tensor) -> list[list[Mention]]:
            new = ground(guard, inputs, ids, only_scored, states=states)
            return [to_take_out(answer.mentions, below) for answer in new]

        rewriter = Rewriter(guard, prompt, inputs, generate or guard.generate, score)
        repaired = rewriter.repair([answer.text for answer in scored], taken_out)
    return [
        replace(answer, repaired=replace(mended, below=below)) for answer, mended in zip(scored, repaired, strict=True)
    ]


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
        target = guard.target
        states = VisualStates.of(target.architecture, settings.lens_layers, target.profile)
    # The plain model's own reading of the prompt serves lens and self-check; under a method it is read once more.
    answered = AnsweredPrompt(guard.target.architecture) if _is_plain(guard, method, named) else None
    with guard.reading.holding(), ExitStack() as recording:
        if answered is not None:
            recording.enter_context(answered.watching(named["input_ids"].shape[1]))
            if states is not None:
                recording.enter_context(states.recording(guard.target.architecture, named["input_ids"]))
        output = guard.generate(*args, method=method, **{**named, "return_dict_in_generate": True})
        recording.close()
        if answered is not None:
            answered.cache = output.get("past_key_values")
        again = partial(guard.generate, method=method)
        answers = ground(guard, named, output.sequences, settings, states=states, generate=again, answered=answered)
    output.repaired = [answer.repaired for answer in answers]
    output.mentions = [answer.mentions for answer in answers]
    output.texts = [answer.text for answer in answers]
    return output


def _is_plain(guard: "Guard", method: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of `guard.generate` runs the model as it is."""
    if "guard" in kwargs:
        return False
    if method is None:
        return all(bound.method.name == "none" for bound in guard.methods)
    return isinstance(method, str) and method.strip() == "none"


def repair_limit(settings: Grounding, profile: Profile | None) -> float:
    """Below what score mentions are taken out: as the settings say, else as the model's profile does."""
    return repair_below_of(profile, settings.parts) if settings.repair_below is None else settings.repair_below


def scored_mention(
    answer: ReadAnswer,
    index: int,
    measured: tuple[Mapping[str, float], Box | None],
    settings: Grounding,
    weights: Mapping[str, float] | None,
) -> Mention:
    """A mention with its score and verdict.

    Args:
        answer: the answer.
        index: of the mention in it.
        measured: its parts, and where it was read; no part where it was not checked.
        settings: which parts make a score, and what score is enough.
        weights: see `score_of`.
    """
    found, (parts, box) = answer.found[index], measured
    score = score_of(parts, weights) if len(parts) == len(settings.parts) else None
    verdict: Verdict = "unchecked" if score is None else "grounded" if score >= settings.threshold else "doubtful"
    return Mention(
        text=answer.text[found.start : found.end],
        noun=found.noun,
        start=found.start,
        end=found.end,
        token_span=answer.tokens[index],
        score=score,
        verdict=verdict,
        parts=dict(parts),
        box=box,
    )


def _weights(guard: "Guard", settings: Grounding) -> dict[str, float] | None:
    weights = weights_of(guard.target.profile, settings.parts)
    if weights is None and {"lens", "self_check"} & set(settings.parts):
        guard.reading.say(not_measured(settings.threshold))
    return weights
