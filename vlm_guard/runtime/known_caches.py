"""Caches that a guard has filled: what was learned about their tokens holds for as long as they live."""

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlm_guard.method.state import GenerationState, PromptTokens


@dataclass(eq=False)
class KnownCaches:
    """The generation state of every cache that was filled under the guard.

    A conversation goes on with the cache of its last turn, several conversations take turns, and a model that drafts
    for itself has a cache of its own beside the one it drafts for. Each finds its state here by the cache.
    """

    _states: "weakref.WeakKeyDictionary[Any, GenerationState]" = field(default_factory=weakref.WeakKeyDictionary)

    def remember(self, cache: Any, state: GenerationState) -> None:
        """From now on `cache` holds the tokens of `state`."""
        if cache is not None:
            self._states[cache] = state

    def get(self, cache: Any) -> GenerationState | None:
        """The state of a cache, if this guard has filled it."""
        return None if cache is None else self._states.get(cache)

    def state_of(self, cache: Any) -> GenerationState:
        """The state of a filled cache.

        Raises:
            ValueError: this guard has not filled it.
        """
        if cache not in self._states:
            raise ValueError(
                "past_key_values was not filled under this guard (it was filled before, under another guard, or is a "
                "copy), so its visual tokens are unknown; start from the whole prompt"
            )
        return self._states[cache]

    def forget(self) -> None:
        """Forget all of them: without the guard they may be filled with anything."""
        self._states.clear()

    def whole_prompt(self, cache: Any, prompt: PromptTokens | None, attention_mask: Any) -> PromptTokens | None:
        """The whole prompt of a `generate` call with this `past_key_values`.

        Args:
            cache: `past_key_values` of the call, or None.
            prompt: its `input_ids`: the whole conversation, or only what is not in the cache yet.
            attention_mask: [B, T] of the whole conversation; the longer one tells transformers which of both it is.
        """
        state = self.get(cache)
        if state is None or prompt is None or not int(cache.get_seq_length()):
            return prompt
        earlier = attention_mask.shape[-1] - prompt.length if isinstance(attention_mask, Tensor) else 0
        if earlier <= 0:
            return prompt
        known = state.visual[:, :earlier].to(prompt.visual.device)
        known = torch.nn.functional.pad(known, (0, earlier - known.shape[1]))
        real = attention_mask.to(prompt.real.device).bool()
        return PromptTokens(visual=torch.cat((known, prompt.visual), 1), real=real)
