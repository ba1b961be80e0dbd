"""From generated tokens to text: which characters each token spells."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Text of generated tokens, special tokens left out, blanks as generated."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def token_spans(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of generated tokens, and which of its characters each token added.

    Tokens are decoded together, ever longer, because the text of a token depends on the ones before it. A character
    whose bytes are spread over several tokens belongs to the one that completes it.

    Returns:
        The text without leading blanks and special tokens, and one (start, end) per token; empty spans for tokens
        that add nothing.
    """
    whole = decode(tokenizer, token_ids)
    ends = []
    for count in range(1, len(token_ids) + 1):
        so_far = decode(tokenizer, token_ids[:count])
        shared = 0
        for mine, final in zip(so_far, whole):
            if mine != final:
                break
            shared += 1
        ends.append(shared)
    lead = len(whole) - len(whole.lstrip())
    spans, before = [], 0
    for end in ends:
        end = max(end, before)
        spans.append((max(0, before - lead), max(0, end - lead)))
        before = end
    return whole.strip(), spans


def answer_rows(sequences: Tensor, input_ids: Tensor, model: Any) -> list[list[int]]:
    """The answer's ids of every sequence, up to its end token (left out) or padding.

    Args:
        sequences: [N, P + T] or [N, T] ids that `generate` returned.
        input_ids: [B, P] it was given; N is a multiple of B.
        model: names end and padding tokens.

    Raises:
        ValueError: the sequences do not belong to these prompts.
    """
    repeats, rest = divmod(len(sequences), len(input_ids))
    if rest or not repeats:
        raise ValueError(f"{len(sequences)} sequences cannot be answers to {len(input_ids)} prompts")
    length = input_ids.shape[1]
    given = input_ids.repeat_interleave(repeats, 0).to(sequences.device)
    if sequences.shape[1] >= length and torch.equal(sequences[:, :length], given):
        sequences = sequences[:, length:]
    config = model.generation_config
    end, pad = config.eos_token_id, config.pad_token_id
    ends = set(end) if isinstance(end, list | tuple) else {end}
    rows = []
    for row in sequences.tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), len(row))
        while stop and row[stop - 1] == pad:
            stop -= 1
        rows.append(row[:stop])
    return rows
