"""Where the first tokens of an answer look: a pass of the bare model that records one attention row per layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm_guard.branch_inputs import TOKEN_TYPES, image_inputs
from vlm_guard.branch_prompt import BranchPrompt, GivenPrompt
from vlm_guard.early_exit import StopForward

if TYPE_CHECKING:
    from vlm_guard.guard import Guard


def attention_under(
    guard: "Guard",
    prompt: GivenPrompt,
    asked: BranchPrompt,
    inputs: Mapping[str, Any],
    layers: tuple[int, ...],
    steps: int,
) -> list[Tensor]:
    """Attention of the answers to `asked` on the tokens of `prompt`.

    Args:
        guard: suspended for the pass.
        prompt: the prompt whose tokens count.
        asked: the prompt that is answered, made from it.
        inputs: of `generate` for `prompt`; its images are used.
        layers: the layers to record.
        steps: the longest answer.

    Returns:
        For each row [T, layers, P] float32, T its number of steps; zero for tokens that `asked` lacks.
    """
    given = image_inputs(inputs) | {"input_ids": asked.input_ids, "attention_mask": asked.attention_mask}
    for name in TOKEN_TYPES:
        if isinstance(inputs.get(name), Tensor):
            given[name] = asked.follow(inputs[name])
    rows, ended = answer_attention(guard, given, layers, steps)
    source = asked.source.cpu()
    kept = (source >= 0) & asked.attention_mask.bool().cpu()
    found = []
    for row in range(source.shape[0]):
        aligned = torch.zeros(*rows.shape[:2], prompt.input_ids.shape[1])
        aligned[..., source[row][kept[row]]] = rows[:, :, row][..., kept[row]]
        found.append(aligned[: int(ended[row])])
    return found


def answer_attention(
    guard: "Guard", inputs: Mapping[str, Any], layers: tuple[int, ...], steps: int
) -> tuple[Tensor, Tensor]:
    """Answer greedily without any method, and record the head mean of the rows that predict each token.

    With one step, the pass ends behind the last of the layers.

    Args:
        guard: suspended for the pass.
        inputs: tensors for `generate`.
        layers: the layers to record.
        steps: the longest answer.

    Returns:
        [steps, layers, B, P] float32 attention on the P prompt tokens, zero after a row's answer has ended, and [B]
        long, the number of steps of each row.
    """
    from vlm_guard.guard import wrap

    model, length = guard.target.model, inputs["input_ids"].shape[1]
    spec = ",".join(map(str, layers))
    with guard.suspended(), wrap(model, None, "none") as probe, probe.trace(spec) as trace:
        sequences = None
        with _stop_after(guard.target.architecture.layers, layers[-1], steps == 1):
            settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": steps, "return_dict_in_generate": False}
            sequences = probe.generate(**inputs, **settings)
    batch = inputs["input_ids"].shape[0]
    ended = torch.ones(batch, dtype=torch.long) if sequences is None else _answer_lengths(model, sequences, length)
    rows = torch.stack(
        [
            torch.stack([trace.weights[layer][step].mean(1)[:, :length] for layer in layers])
            for step in range(trace.steps)
        ]
    )
    alive = torch.arange(rows.shape[0])[:, None] < ended
    return rows * alive[:, None, :, None], ended.clamp_max(rows.shape[0])


def _answer_lengths(model: nn.Module, sequences: Tensor, length: int) -> Tensor:
    """[B] generated tokens of every row, the end token included."""
    answer = sequences[:, length:].cpu()
    end = model.generation_config.eos_token_id
    if end is None:
        return torch.full((answer.shape[0],), answer.shape[1])
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
