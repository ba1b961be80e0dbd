"""The `generate` call of a method that writes the answer by a search of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import LongTensor, Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerationMode

from vlm_guard.contrast.candidate_passes import BeamPasses
from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.hooks import acts_in_model
from vlm_guard.method.key_edit_method import KeyEditMethod
from vlm_guard.method.search_call import SearchCall
from vlm_guard.method.state import PromptTokens
from vlm_guard.method.visual_tokens import visual_mask

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.base import Method
    from vlm_guard.method.target import GuardTarget

_OUTPUTS = ("output_scores", "output_hidden_states", "output_attentions")


def answer_by_search(
    target: "GuardTarget",
    method: "Method",
    guard: "Guard",
    model: GenerativeModel,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    streamer: Any,
    model_kwargs: dict[str, Any],
) -> Any:
    """What `generate` returns: the prompts with the method's answers.

    Raises:
        ValueError: the call asks for something that such a search has not.
    """
    _refuse(guard, method, input_ids, generation_config)
    if guard.reading.tracer is not None:
        raise ValueError(
            f"{method.name} tries tokens that it does not take, so there is no attention of the answer's tokens to "
            "trace; trace another method"
        )
    beams: int = getattr(method, "beams")  # noqa: B009 - the option that `Method.search` asks for
    passes = BeamPasses(model, target.architecture, beams, method.name)
    # Without a cache every candidate would read the prompt; what is computed is the same.
    model_kwargs["use_cache"] = True
    logits = passes.read(input_ids, generation_config, model_kwargs)
    visual = visual_mask(input_ids, target.architecture.visual_token_ids)
    answers: list[Tensor] = []
    scores: list[Tensor] = []
    steps: list[Tensor] = []
    wants_logits = generation_config.return_dict_in_generate and generation_config.output_logits
    for row in range(input_ids.shape[0]):
        passes.answer(row)
        call = SearchCall(
            input_ids=input_ids[row : row + 1],
            visual=visual[row],
            logits=logits[row : row + 1],
            passes=passes,
            process=logits_processor,
            stops=lambda ids: stopping_criteria(ids, ()),
            length_penalty=generation_config.length_penalty,
            early_stopping=generation_config.early_stopping,
            found=guard.findings(method.name),
        )
        with _answering(guard, row, passes):
            answer, score = method.search(call) if bool(call.visual.any()) else _greedy(call, beams)
            if wants_logits:
                behind = passes.along(answer[None].expand(beams, -1))[0]
                steps.append(torch.cat((call.logits, behind[:-1])))
        answers.append(answer)
        scores.append(score)
    sequences = torch.cat((input_ids, _padded(answers, generation_config)), 1)
    if streamer is not None:
        for token in sequences[0, input_ids.shape[1] :]:
            streamer.put(token[None].cpu())
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return sequences
    # Of the model, before each token of the answers; zeros where an answer has ended.
    logits_of_steps = tuple(pad_sequence(steps)) if wants_logits else None
    return GenerateBeamDecoderOnlyOutput(
        sequences=cast(LongTensor, sequences), sequences_scores=torch.stack(scores), logits=logits_of_steps
    )


def _greedy(call: SearchCall, beams: int) -> tuple[Tensor, Tensor]:
    """The model's own answer to a prompt without a picture, to which nothing is done."""
    ids, logits = call.input_ids, call.logits
    every = torch.arange(beams, device=ids.device)
    score = logits.new_zeros(())
    while True:
        chosen = call.process(ids, logits.clone()).log_softmax(-1).max(-1)
        score = score + chosen.values[0]
        ids = torch.cat((ids, chosen.indices[:, None]), 1)
        if bool(call.stops(ids).all()):
            return ids[0, call.input_ids.shape[1] :], score
        logits = call.passes.candidates(chosen.indices.expand(beams, 1))[:1, 0]
        call.passes.keep(every, torch.zeros_like(every))


@contextmanager
def _answering(guard: "Guard", row: int, passes: BeamPasses) -> Iterator[None]:
    """Inside, passes belong to row number `row` of a call's prompts, in as many beams as there are."""
    state = guard.state
    prompt = None if state is None else state.prompt
    if state is None or prompt is None:
        yield
        return
    part = slice(row, row + 1)
    ids = None if prompt.input_ids is None else prompt.input_ids[part]
    own = PromptTokens(visual=prompt.visual[part], real=prompt.real[part], input_ids=ids)
    with guard.reading.branch("positive", own, state):
        # One token a beam is a step like any other, which takes nothing in: the beams are told before it.
        state.prompt = own
        tokens = torch.zeros(passes.beams, 1, dtype=torch.long, device=prompt.visual.device)
        state.read(tokens, None, own.length, passes.cache)
        yield
    state.prompt = prompt


def _padded(answers: list[Tensor], config: GenerationConfig) -> Tensor:
    """[B, T] the answers, the shorter ones with padding behind them."""
    padding = getattr(config, "_pad_token_tensor", None)
    return pad_sequence(answers, batch_first=True, padding_value=0 if padding is None else int(padding))


def _refuse(guard: "Guard", method: "Method", input_ids: Tensor, config: GenerationConfig) -> None:
    name = method.name
    if config.get_generation_mode() != GenerationMode.GREEDY_SEARCH or config.num_return_sequences > 1:
        raise ValueError(
            f"{name} is a beam search of its own with {name}:beams=... beams and one answer; drop num_beams, "
            "do_sample, num_return_sequences and other options that select a way of decoding"
        )
    asked = [option for option in _OUTPUTS if getattr(config, option, False)]
    if asked:
        raise ValueError(f"{name} returns sequences, their scores and logits only; drop {', '.join(asked)}")
    others = [bound.method for bound in guard.methods if bound.method is not method]
    kept = [other.name for other in others if acts_in_model(other) and not isinstance(other, KeyEditMethod)]
    if kept and input_ids.shape[0] > 1:
        raise ValueError(
            f"{name} answers the prompts of a batch one after the other, and {' and '.join(kept)} keeps what it found "
            "for all of them together: call generate for one prompt at a time for this combination"
        )
