"""Greedy answers of the built-in model to many questions about the same pictures, each picture encoded once.

The same tokens as ``model.generate(do_sample=False)`` on the processor's inputs (a test compares them), several times
faster, because a picture's keys and values are shared by all its questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

from vlm_guard.eval.training.model import normalise, visual_features
from vlm_guard.eval.training.tokenizer import BOS, EOS, PAD, encode

PICTURES_AT_ONCE = 100
QUESTIONS_AT_ONCE = 200


class SceneReader:
    """Holds the keys and values of every picture's prefix ``<s>USER: <image>``.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        pixels: uint8 (N, 96, 96, 3).
    """

    @torch.no_grad()
    def __init__(
        self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pixels: np.ndarray
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        prefix = torch.tensor([[BOS, *encode(tokenizer, "USER: ")]], device=model.device)
        parts = []
        for start in range(0, len(pixels), PICTURES_AT_ONCE):
            some = torch.from_numpy(np.ascontiguousarray(pixels[start : start + PICTURES_AT_ONCE]))
            visual = visual_features(model, normalise(some.to(model.device)).to(model.dtype))
            words = model.get_input_embeddings()(prefix).expand(len(some), -1, -1)
            cache = DynamicCache(config=model.config.get_text_config(decoder=True))
            model.model.language_model(
                inputs_embeds=torch.cat([words, visual], dim=1), past_key_values=cache, use_cache=True
            )
            parts.append([_keys_and_values(layer) for layer in cache.layers])
        self.layers = [
            (torch.cat([part[layer][0] for part in parts]), torch.cat([part[layer][1] for part in parts]))
            for layer in range(len(parts[0]))
        ]

    @torch.no_grad()
    def ask(self, pictures: Sequence[int], questions: Sequence[str], longest: int = 128) -> list[str]:
        """The answer to each question about the picture of the same place; ``longest`` in tokens."""
        prompts = self.tokenizer([f"\n{question} ASSISTANT:" for question in questions], add_special_tokens=False)
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(prompts.input_ids):
            by_length.setdefault(len(ids), []).append(place)
        answers = [""] * len(questions)
        for places in by_length.values():
            for start in range(0, len(places), QUESTIONS_AT_ONCE):
                some = places[start : start + QUESTIONS_AT_ONCE]
                rows = torch.tensor([pictures[place] for place in some], device=self.model.device)
                ids = torch.tensor([prompts.input_ids[place] for place in some], device=self.model.device)
                for place, tokens in zip(some, self._decode(rows, ids, longest).tolist()):
                    kept = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
                    answers[place] = str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()
        return answers

    def _decode(self, rows: torch.Tensor, ids: torch.Tensor, longest: int) -> torch.Tensor:
        """Greedy tokens (B, at most ``longest``) after the prompt ``ids`` (B, Q); padding follows the end."""
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(keys[rows], values[rows], layer)
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        tokens = []
        for _ in range(longest):
            hidden = self.model.model.language_model(
                input_ids=ids, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            chosen = self.model.lm_head(hidden).argmax(-1).masked_fill(done, PAD)
            done |= chosen == EOS
            tokens.append(chosen)
            if done.all():
                break
            ids = chosen[:, None]
        return torch.stack(tokens, dim=1)


def _keys_and_values(layer: object) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer of the cache holds after a pass."""
    if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
        raise TypeError(f"the built-in model's cache holds keys and values, but a layer of it is {layer!r}")
    return layer.keys, layer.values
