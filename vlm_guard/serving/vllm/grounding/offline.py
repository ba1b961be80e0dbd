"""Scores for answers with vLLM's `LLM`, without a server."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.score import not_measured
from vlm_guard.grounding.settings import Grounding
from vlm_guard.serving.vllm.declaration import KEY, PLAIN, SERVED_PARTS, Declaration
from vlm_guard.serving.vllm.grounding.asked_mentions import AskedMentions, MentionReader
from vlm_guard.serving.vllm.grounding.conversation import Conversation
from vlm_guard.serving.vllm.grounding.lens_keys import LENS, lens_key
from vlm_guard.serving.vllm.grounding.lens_rows import KEPT

_TOGETHER = KEPT // 2
Send = Callable[[list[Any], list[Any]], list[Any]]


def ground(
    llm: Any,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    settings: Grounding | None = None,
    **chat: Any,
) -> list[GroundedAnswer]:
    """Score the mentions of answers; the plain model is asked, whoever gave them.

    Args:
        llm: a `vllm.LLM` that was started with `engine_options(..., grounding="lens,self_check")`.
        conversations: each a list of messages, as `llm.chat` takes them, of which the last is the assistant's answer.
        settings: what is measured; by default all that the engine was started for.
        chat: further arguments of `llm.chat`; by default the chat template that reads prompts as the processor does.

    Returns:
        One for each conversation, as `vlm_guard.grounding.ground` gives them for a model in transformers; tokens are
        counted as the tokenizer reads the answer's text.

    Raises:
        ValueError: a conversation is none, or the engine does not measure what is wanted.
    """
    declared = Declaration.of_environment()
    offered = () if declared is None else declared.grounding
    if not offered:
        raise ValueError(
            "this engine scores no mentions; start it with LLM(MODEL, **engine_options(..., "
            f'grounding="{",".join(SERVED_PARTS)}"))'
        )
    reader = MentionReader.of_engine(llm.llm_engine.vllm_config.model_config, offered)
    asked = [reader.read(Conversation.of(list(messages)), settings) for messages in conversations]
    unmeasured = {one.settings.threshold for one in asked if one.weights is None and one.things}
    for threshold in sorted(unmeasured):
        warnings.warn(not_measured(threshold), stacklevel=2)
    chat = {"chat_template": reader.chat_template, **chat}
    return score(llm, asked, partial(llm.chat, use_tqdm=False, **chat))


def score(llm: Any, answers: Sequence[AskedMentions], send: Send) -> list[GroundedAnswer]:
    """Have an engine answer what has to be asked about some answers.

    Args:
        llm: a `vllm.LLM`.
        answers: read.
        send: has it answer prompts, each with its own sampling parameters, and returns its outputs.
    """
    found: list[GroundedAnswer] = []
    for start in range(0, len(answers), _TOGETHER):
        found += _score(llm, answers[start : start + _TOGETHER], send)
    return found


def _score(llm: Any, answers: Sequence[AskedMentions], send: Send) -> Iterator[GroundedAnswer]:
    """Score some answers together: the first questions of all, then all others, which find their prompts' keys."""
    with ExitStack() as keys:
        lens = {number: keys.enter_context(lens_key()) for number, asked in enumerate(answers) if asked.reads_lens}
        places = [(number, 0) for number, asked in enumerate(answers) if asked.requests]
        values = _ask(answers, places, lens, send)
        said = {
            number: next(
                (one for one in llm.collective_rpc("vlm_guard_lens", args=(key, answers[number].words)) if one), None
            )
            for number, key in lens.items()
        }
    if any(one is None for one in said.values()):
        raise RuntimeError("the hidden states of a picture were not kept, which must never be")
    places = [(number, turn) for number, asked in enumerate(answers) for turn in range(1, len(asked.requests))]
    values |= _ask(answers, places, {}, send)
    for number, asked in enumerate(answers):
        checked = "self_check" in asked.settings.parts
        own = [values[number, turn] for turn in range(len(asked.requests))] if checked else []
        yield asked.result(own, said.get(number))


def _ask(
    answers: Sequence[AskedMentions],
    places: Sequence[tuple[int, int]],
    lens: Mapping[int, str],
    send: Send,
) -> dict[tuple[int, int], float]:
    """What the self-check says, by the number of the answer and of the question."""
    from vllm import SamplingParams

    if not places:
        return {}
    params = []
    for number, turn in places:
        asked = answers[number]
        checked = "self_check" in asked.settings.parts
        key = {LENS: lens[number]} if turn == 0 and number in lens else {}
        params.append(
            SamplingParams(
                temperature=0,
                max_tokens=1,
                detokenize=False,
                logprob_token_ids=[token for ids in asked.reader.yes_and_no for token in ids] if checked else None,
                extra_args={KEY: PLAIN, **key},
            )
        )
    outputs = send([answers[number].requests[turn] for number, turn in places], params)
    found = {}
    for place, output in zip(places, outputs, strict=True):
        if "self_check" in answers[place[0]].settings.parts:
            first = output.outputs[0].logprobs[0]
            found[place] = answers[place[0]].value({token: kept.logprob for token, kept in first.items()})
    return found
