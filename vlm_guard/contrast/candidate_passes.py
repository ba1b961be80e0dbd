"""Passes in which several next tokens are tried behind each beam at once, over one cache.

A beam's candidates stand at the same place: they are given one position, and a mask lets each of them see the prompt,
the answer of its beam and itself. One forward pass of N x C tokens thus does what N x C rows would do, with N rows of
keys. The keys of the prompt are the same in every beam and are never moved; going on with a candidate moves those of
the answer alone.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from vlm_guard.contrast.branch_cache import KeyRoom, RoomyLayer, prompt_cache
from vlm_guard.families.architecture import Architecture, GenerativeModel
from vlm_guard.families.attention_window import has_window
from vlm_guard.method.model_inputs import TOKEN_TYPES

# Arguments of a step that the passes make themselves, or that belong to the prompt's pass.
_OWN = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep", "mm_encoder_outputs", *TOKEN_TYPES)


class BeamPasses:
    """The passes of one answer; see `vlm_guard.method.search_call.CandidatePasses`.

    All prompts of a call are read in one pass, and then answered one after the other: `answer` makes room for the beams
    of the next one.

    Args:
        model: the model.
        architecture: its shape.
        beams: N.
        name: of the method, for errors.

    Raises:
        ValueError: the decoder has layers that see a window only, or keep a state instead of keys.
    """

    def __init__(self, model: GenerativeModel, architecture: Architecture, beams: int, name: str) -> None:
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.beams = beams
        self.cache: DynamicCache = prompt_cache(model)
        limited = any(has_window(config, layer) for layer in range(architecture.depth))
        if limited or any(type(layer) is not DynamicLayer for layer in self.cache.layers):
            raise ValueError(
                f"{name} tries several next tokens in one pass, which needs a decoder whose layers all attend to every "
                f"earlier token; {architecture.model_type} has others (windows, chunks or running states)"
            )
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise ValueError(f"{name} gives candidates one position, but {type(model).__name__} takes no position_ids")
        self._prompt: list[tuple[Tensor, Tensor]] = []
        # Of all prompts: mask [B, P], position [..., B, 1] of the answer's first token, and types [B, 1] of tokens.
        self._masks = self._firsts = torch.zeros(0)
        self._types: dict[str, Tensor] = {}
        self._others: dict[str, Any] = {}
        self._row = slice(0, 1)
        self.prompt_length = self.length = 0

    def read(self, input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]) -> Tensor:
        """Read the prompts [B, P]; [B, V] float32 logits."""
        model_kwargs["past_key_values"] = self.cache
        output = self.model._prefill(input_ids, generation_config, model_kwargs)
        mask = model_kwargs.get("attention_mask")
        self._masks = torch.ones_like(input_ids) if mask is None else mask[:, : input_ids.shape[1]]
        kwargs = self.model._update_model_kwargs_for_generation(output, model_kwargs, is_encoder_decoder=False)
        positions = kwargs.get("position_ids")
        self._firsts = self._masks.sum(-1)[:, None] if positions is None else positions[..., -1:]
        self._types = {name: kwargs[name][:, -1:] for name in TOKEN_TYPES if isinstance(kwargs.get(name), Tensor)}
        self._others = {
            name: value for name, value in kwargs.items() if name not in _OWN and not isinstance(value, Tensor)
        }
        self.prompt_length = self.length = input_ids.shape[1]
        self._prompt = [_states(layer) for layer in self.cache.layers]
        return output.logits[:, -1].float()

    def answer(self, row: int) -> None:
        """From now on the passes are behind prompt number `row`."""
        self._row, self.length = slice(row, row + 1), self.prompt_length
        for index, states in enumerate(self._prompt):
            room = KeyRoom(self.beams, self.length)
            keys, values = (part[self._row].expand(self.beams, -1, -1, -1) for part in states)
            room.write(slice(0, self.beams), 0, keys, values)
            self.cache.layers[index] = RoomyLayer.whole(room, self.length)

    def candidates(self, tokens: Tensor) -> Tensor:
        """[N, C, V] float32 logits behind the candidates [N, C]."""
        self._cut_to(self.length)
        count, width = tokens.shape
        written = self.length - self.prompt_length
        seen = torch.nn.functional.pad(self._masks[self._row].bool(), (0, written), value=True)
        seen = seen[:, None].expand(count, width, -1)
        own = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(count, -1, -1)
        allowed = torch.cat((seen, own), 2)[:, None]
        mask = torch.zeros(allowed.shape, dtype=self.model.dtype, device=tokens.device)
        mask = mask.masked_fill(~allowed, torch.finfo(self.model.dtype).min)
        return self._pass(tokens, mask, torch.zeros_like(tokens[:1]) + written)

    def keep(self, beams: Tensor, picks: Tensor) -> None:
        """Move the keys of the answer: those of beam `beams` [N] and, behind them, of its candidate `picks` [N]."""
        for layer in self.cache.layers:
            for states in _states(layer):
                answer = states[beams, :, self.prompt_length : self.length]
                taken = states[beams, :, self.length + picks]
                states[:, :, self.prompt_length : self.length] = answer
                states[:, :, self.length] = taken
        self.length += 1
        self._cut_to(self.length)

    def rewrite(self, tokens: Tensor) -> Tensor:
        """[N, V] float32 logits behind the answer `tokens` [N, t], read anew behind the prompt."""
        return self.along(tokens)[:, -1]

    def along(self, tokens: Tensor) -> Tensor:
        """[N, t, V] float32 logits behind each token of the answer `tokens` [N, t], read anew behind the prompt."""
        self._cut_to(self.prompt_length)
        count, width = tokens.shape
        mask = torch.nn.functional.pad(self._masks[self._row], (0, width), value=1).expand(count, -1)
        logits = self._pass(tokens, mask, torch.arange(width, device=tokens.device)[None])
        self.length = self.prompt_length + width
        return logits

    def _cut_to(self, length: int) -> None:
        """Give up the keys behind the first `length`."""
        beyond = int(self.cache.get_seq_length()) - length
        if beyond:
            self.cache.crop(-beyond)

    def _pass(self, tokens: Tensor, mask: Tensor, behind: Tensor) -> Tensor:
        """[N, Q, V] logits of tokens [N, Q] that stand `behind` [1, Q] places behind the first of the answer."""
        positions = self._firsts[..., self._row, :] + behind
        positions = positions.expand(*positions.shape[:-2], *tokens.shape)
        types = {name: value[self._row].expand(tokens.shape) for name, value in self._types.items()}
        inputs = self.model.prepare_inputs_for_generation(
            tokens,
            next_sequence_length=tokens.shape[1],
            past_key_values=self.cache,
            attention_mask=mask,
            position_ids=positions,
            **types,
            **self._others,
        )
        return self.model(**inputs, return_dict=True).logits[:, -tokens.shape[1] :].float()


def _states(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values [B, G, K, E] that a layer of the cache holds once a prompt has been read."""
    return layer.keys, layer.values
