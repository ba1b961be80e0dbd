"""The `generate` call of a method that writes the answer by a search of its own."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerationMode

from vlm_guard.contrast.candidate_passes import BeamPasses
from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.search_call import SearchCall
from vlm_guard.method.visual_tokens import visual_mask

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.base import Method
    from vlm_guard.method.target import GuardTarget

_OUTPUTS = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")


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
    """What `generate` returns: the prompt with the method's answer.

    Raises:
        ValueError: the call asks for something that a search of one prompt by beams has not.
    """
    _refuse(method.name, input_ids, generation_config, streamer)
    beams: int = getattr(method, "beams")  # noqa: B009 - the option that `Method.search` asks for
    passes = BeamPasses(model, target.architecture, beams, method.name)
    # Without a cache every candidate would read the prompt; what is computed is the same.
    model_kwargs["use_cache"] = True
    logits = passes.read(input_ids, generation_config, model_kwargs)
    call = SearchCall(
        input_ids=input_ids,
        visual=visual_mask(input_ids, target.architecture.visual_token_ids)[0],
        logits=logits,
        passes=passes,
        process=logits_processor,
        stops=lambda ids: stopping_criteria(ids, ()),
        length_penalty=generation_config.length_penalty,
        early_stopping=generation_config.early_stopping,
        found=guard.findings(method.name),
    )
    answer, score = method.search(call)
    sequences = torch.cat((input_ids, answer[None]), 1)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateBeamDecoderOnlyOutput(sequences=sequences, sequences_scores=score[None])


def _refuse(name: str, input_ids: Tensor, config: GenerationConfig, streamer: Any) -> None:
    if input_ids.shape[0] != 1:
        raise ValueError(
            f"{name} goes back in an answer when it has gone wrong, so it answers one prompt at a time; given "
            f"{input_ids.shape[0]} rows (prompts, or num_return_sequences): call generate for each, or set batch 1"
        )
    if config.get_generation_mode() != GenerationMode.GREEDY_SEARCH:
        raise ValueError(
            f"{name} is a beam search of its own with {name}:beams=... beams; drop num_beams, do_sample and other "
            "options that select a way of decoding"
        )
    if streamer is not None:
        raise ValueError(f"{name} may take tokens back, so it cannot stream them; drop the streamer")
    asked = [option for option in _OUTPUTS if getattr(config, option, False)]
    if asked:
        raise ValueError(f"{name} returns sequences and their scores only; drop {', '.join(asked)}")
