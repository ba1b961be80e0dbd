"""Reading a prompt with and without its image in one forward pass.

Every row that has an image gets a twin: the same tokens with the visual ones and their markers deleted. The twins are
appended as further batch rows, padded on the left, with positions of their own. After the pass the twins are cut off
again, from the output and from the cache, so that a generation goes on as if it had read its own rows only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from vlm_guard.branch_inputs import TOKEN_TYPES
from vlm_guard.branch_prompt import BranchPrompt, GivenPrompt, image_markers
from vlm_guard.contrast import padding_id

# The outputs of a model that have one entry for each row.
_PER_ROW = ("logits", "hidden_states", "attentions", "last_hidden_state")


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoStreams:
    """The rows of a prompt and their twins without image.

    Attributes:
        batch: B, number of given rows.
        with_image: [M] long, the given rows that have an image; their twins are rows B to B + M.
        text: the M twins, padded on the left to their own longest.
        input_ids: [B, P] the given rows. attention_mask: [B, P] long, 0 for padding.
    """

    batch: int
    with_image: Tensor
    text: BranchPrompt
    input_ids: Tensor
    attention_mask: Tensor

    @classmethod
    def of(
        cls, input_ids: Tensor, real: Tensor, visual_token_ids: tuple[int, ...], model: Any, processor: Any
    ) -> "TwoStreams":
        """From a whole prompt.

        Args:
            input_ids: [B, P].
            real: [B, P] bool, False for padding.
            visual_token_ids: ids that stand for patches.
            model: knows markers and padding.
            processor: knows more of them; may be None.

        Raises:
            ValueError: nothing is left of a prompt without its image.
        """
        mask = real.to(input_ids.device).long()
        pad_id = padding_id(model, processor, visual_token_ids)
        given = GivenPrompt(input_ids=input_ids, attention_mask=mask, visual_token_ids=visual_token_ids, pad_id=pad_id)
        rows = given.has_image.nonzero().flatten()
        imaged = GivenPrompt(
            input_ids=input_ids[rows], attention_mask=mask[rows], visual_token_ids=visual_token_ids, pad_id=pad_id
        )
        text = imaged.without_images(image_markers(model, processor))
        return cls(batch=input_ids.shape[0], with_image=rows, text=text, input_ids=input_ids, attention_mask=mask)

    @property
    def last(self) -> Tensor:
        """[B] index of the last real token of each given row."""
        place = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return (place * self.attention_mask).argmax(-1)

    def text_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a forward pass over the twins alone, at their own length, without a cache."""
        length = self.text.length
        kept = {name: value for name, value in inputs.items() if _is_setting(name, value)}
        kept |= {"input_ids": self.text.input_ids, "attention_mask": self.text.attention_mask, "use_cache": False}
        if isinstance(inputs.get("position_ids"), Tensor):
            kept["position_ids"] = self._text_positions(inputs["position_ids"], length)
        for name in TOKEN_TYPES:
            if isinstance(inputs.get(name), Tensor):
                kept[name] = self.text.follow(inputs[name][self.with_image])
        return kept

    def joint_inputs(self, inputs: dict[str, Any], embedding: nn.Module) -> dict[str, Any]:
        """The inputs of one forward pass over the given rows and their twins.

        Args:
            inputs: of the pass over the given rows alone.
            embedding: the input embeddings, for prompts that are given as embeddings.
        """
        length = self.input_ids.shape[1]
        front = (length - self.text.length, 0)
        pad = torch.nn.functional.pad
        filler = int(self.text.input_ids[0, 0]) if self.text.length else 0
        joined = dict(inputs)
        joined["input_ids"] = torch.cat((self.input_ids, pad(self.text.input_ids, front, value=filler)))
        joined["attention_mask"] = torch.cat((self.attention_mask, pad(self.text.attention_mask, front)))
        if isinstance(inputs.get("inputs_embeds"), Tensor):
            twins = embedding(joined["input_ids"][self.batch :])
            joined["inputs_embeds"] = torch.cat((inputs["inputs_embeds"], twins.to(inputs["inputs_embeds"].dtype)))
        positions = inputs.get("position_ids")
        if isinstance(positions, Tensor):
            given = positions.expand(*positions.shape[:-2], self.batch, length)
            joined["position_ids"] = torch.cat((given, self._text_positions(positions, length)), dim=-2)
        for name in TOKEN_TYPES:
            if isinstance(inputs.get(name), Tensor):
                followed = self.text.follow(inputs[name][self.with_image])
                joined[name] = torch.cat((inputs[name], pad(followed, front)))
        return joined

    def _text_positions(self, positions: Tensor, length: int) -> Tensor:
        """[..., M, length] positions of the twins: 0 upwards from each one's first token."""
        mask = torch.nn.functional.pad(self.text.attention_mask, (length - self.text.length, 0))
        own = (mask.cumsum(-1) - 1).clamp_min(0).to(positions.dtype)
        return own.expand(*positions.shape[:-2], *own.shape)

    def cut_off(self, output: Any, model: PreTrainedModel) -> Any:
        """The output of a joint pass as if the twins had not been there."""
        for name, value in output.items():
            if isinstance(value, Cache):
                value.batch_select_indices(torch.arange(self.batch, device=self.input_ids.device))
            elif name in _PER_ROW:
                output[name] = self._given_rows(value)
        for module in (model, model.base_model):
            deltas = module.__dict__.get("rope_deltas")
            if isinstance(deltas, Tensor) and deltas.shape[0] == self.batch + len(self.with_image):
                module.rope_deltas = deltas[: self.batch]
        return output

    def _given_rows(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._given_rows(item) for item in value)
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == self.batch + len(self.with_image):
            return value[: self.batch]
        return value


def can_cut_off(cache: Any) -> bool:
    """Whether rows can be taken out of a cache after a joint pass; true without one."""
    if cache is None:
        return True
    if not isinstance(cache, DynamicCache) or getattr(cache, "offloading", False):
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def _is_setting(name: str, value: Any) -> bool:
    """Inputs that belong neither to tokens nor to images nor to a cache."""
    return not isinstance(value, Tensor | dict | Cache) and name not in ("past_key_values", "use_cache")
