"""Where the first tokens of two answers look: passes of the bare model that record one attention row per layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm_guard.contrast.answer_pair import AnswerPair
from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.branch_prompt import BranchPrompt, GivenPrompt
from vlm_guard.method.early_exit import StopForward
from vlm_guard.method.model_inputs import image_inputs, token_types
from vlm_guard.runtime.trace import AttentionTrace

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.base import Method


def paired_attention(
    guard: "Guard",
    method: "Method",
    prompt: GivenPrompt,
    asked: tuple[BranchPrompt, BranchPrompt],
    inputs: Mapping[str, Any],
    layers: tuple[int, ...],
    steps: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Attention of two greedy answers, without any method, on the tokens of `prompt`.

    Recorded is the head mean of the rows that predict each token. With one step, both passes end behind the last of
    the layers.

    Args:
        guard: whose model answers; it stands aside meanwhile.
        method: who asks, for error messages.
        prompt: the prompt whose tokens count.
        asked: the two prompts that are answered, made from it.
        inputs: of `generate` for `prompt`; its images are used.
        layers: the layers to record.
        steps: the longest answer; the second ends with the first at the latest.

    Returns:
        For each of both, for each row [T, layers, P] float32, T its number of steps; zero for tokens that the prompt
        that was answered lacks.
    """
    given = image_inputs(inputs) | {"input_ids": asked[0].input_ids, "attention_mask": asked[0].attention_mask}
    given |= token_types(asked[0], inputs)
    model = guard.target.model
    with guard.bare() as probe, probe.trace(",".join(map(str, layers))) as trace:
        trace.negative = AttentionTrace(layers=trace.layers)
        pair = AnswerPair(probe, method, asked[1], inputs)
        answers: tuple[Tensor | None, Tensor | None] = (None, None)
        with _stop_after(guard.target.architecture.layers, layers[-1], steps == 1):
            settings: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": steps}
            settings |= {"return_dict_in_generate": False, "output_attentions": False}
            sequences = probe.generate(**given, **settings, custom_generate=pair)
            answers = sequences[:, asked[0].length :], pair.second_answer
    first, second = (
        _on_prompt(part, asked_part, prompt, _answer_lengths(model, answer, len(prompt.input_ids)))
        for part, asked_part, answer in zip((trace, trace.negative), asked, answers)
    )
    return first, second


def _on_prompt(trace: AttentionTrace, asked: BranchPrompt, prompt: GivenPrompt, ended: Tensor) -> list[Tensor]:
    """Per row [T, layers, P]: the head mean of what was recorded, at the tokens of `prompt`.

    Args:
        trace: of the answer to `asked`.
        asked: a prompt made from `prompt`.
        prompt: the prompt whose tokens count.
        ended: [B], number of steps of each row.
    """
    rows = torch.stack(
        [
            torch.stack([trace.weights[layer][step].mean(1)[:, : asked.length] for layer in trace.layers])
            for step in range(trace.steps)
        ]
    )
    source = asked.source.cpu()
    kept = (source >= 0) & asked.attention_mask.bool().cpu()
    found = []
    for row, last in enumerate(ended.tolist()):
        aligned = torch.zeros(*rows.shape[:2], prompt.input_ids.shape[1])
        aligned[..., source[row][kept[row]]] = rows[:, :, row][..., kept[row]]
        found.append(aligned[:last])
    return found


def _answer_lengths(model: GenerativeModel, answer: Tensor | None, rows: int) -> Tensor:
    """[B] tokens of every row of `answer` [B, T], the end token included; one where the pass ended early."""
    if answer is None:
        return torch.ones(rows, dtype=torch.long)
    answer = answer.cpu()
    end = model.generation_config.eos_token_id
    if end is None:
        return torch.full((rows,), answer.shape[1])
    ended = torch.isin(answer, torch.tensor(end if isinstance(end, list) else [end]))
    first = torch.where(ended.any(-1), ended.to(torch.uint8).argmax(-1) + 1, answer.shape[1])
    return first.long()


@contextmanager
def _stop_after(entries: tuple, index: int, active: bool) -> Iterator[None]:
    """End forward passes behind decoder layer `index`, and leave the block then."""
    if not active:
        yield
        return

    def stop(module: nn.Module, args: tuple, output: Any) -> None:
        raise StopForward

    layer = next(entry.layer for entry in entries if entry.index == index)
    handle = layer.register_forward_hook(stop)
    try:
        yield
    except StopForward:
        return
    finally:
        handle.remove()
