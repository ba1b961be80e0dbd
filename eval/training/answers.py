"""Greedy answers of a model that comes with the package to questions about pictures, each picture encoded once.

The same tokens as ``model.generate(do_sample=False)`` on the processor's inputs (a test compares them), several times
faster, because a picture's keys and values are shared by all its questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

from vlm_guard.eval.training.model import normalise, visual_features
from vlm_guard.eval.training.tokenizer import BOS, EOS, PAD, encode
from vlm_guard.smol_model import layout

PICTURES_AT_ONCE = 100
QUESTIONS_AT_ONCE = 200


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How a question about one picture is written down.

    Attributes:
        before: token ids in front of the picture.
        question: what follows the picture, with ``{}`` for the question.
        end: id of the token that ends an answer.
        padding: id of the token that follows the end.
    """

    before: tuple[int, ...]
    question: str
    end: int
    padding: int


def chat_format(tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    """SmolLM2's format where the tokenizer has its marks, otherwise the built-in model's."""
    if "<|im_start|>" in tokenizer.get_vocab():
        before = tuple(tokenizer(layout.BEFORE_IMAGE, add_special_tokens=False).input_ids)
        question = f"\n{{}}{layout.AFTER_QUESTION}"
        return ChatFormat(before=before, question=question, end=layout.EOS, padding=layout.PAD)
    before = (BOS, *encode(tokenizer, "USER: "))
    return ChatFormat(before=before, question="\n{} ASSISTANT:", end=EOS, padding=PAD)


class SceneReader:
    """Holds the keys and values of every picture's prefix, such as ``<s>USER: <image>``.

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
        self.format = chat_format(tokenizer)
        prefix = torch.tensor([self.format.before], device=model.device)
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
        prompts = self.tokenizer(
            [self.format.question.format(question) for question in questions], add_special_tokens=False
        )
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
                    end = self.format.end
                    kept = tokens[: tokens.index(end)] if end in tokens else tokens
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
            chosen = self.model.lm_head(hidden).argmax(-1).masked_fill(done, self.format.padding)
            done |= chosen == self.format.end
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
