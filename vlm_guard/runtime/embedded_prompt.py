"""Families that turn prompt and picture into embeddings and let an inner language model generate from them (BLIP-2).

The forward passes of a generation are then those of the inner model, which is given embeddings instead of ids.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.visual_tokens import visual_mask

if TYPE_CHECKING:
    from vlm_guard.method.target import GuardTarget

# What a feature function of a Q-former family takes beside its tensors.
_SETTINGS = ("interpolate_pos_encoding",)


@dataclass(frozen=True, eq=False)
class PromptEmbedder:
    """Embeddings of a prompt with its pictures, for a contrast branch.

    Attributes:
        model: the whole model.
        visual_token_ids: ids that stand for its query tokens.
    """

    model: GenerativeModel
    visual_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, target: "GuardTarget") -> "PromptEmbedder | None":
        """The embedder of a family whose inner model generates; None where `generate` takes ids and pictures."""
        if target.architecture.generator is target.model:
            return None
        return cls(target.model, target.architecture.visual_token_ids)

    @torch.no_grad()
    def encode(self, input_ids: Tensor, images: Mapping[str, Any]) -> Tensor:
        """[B, P, hidden size] of `input_ids` [B, P] and image inputs that are encoded now."""
        features = getattr(self.model, "get_video_features", None) or self.model.get_image_features
        known = inspect.signature(features).parameters
        given = {name: value for name, value in images.items() if name in known or name in _SETTINGS}
        return self._with(input_ids, features(**given, return_dict=True).pooler_output.flatten(0, -2))

    def reuse(self, input_ids: Tensor, given_ids: Tensor, given: Tensor) -> Tensor:
        """[B, P, hidden size] of `input_ids` [B, P] with the pictures of embeddings `given` [B, P', hidden size]."""
        return self._with(input_ids, given[visual_mask(given_ids, self.visual_token_ids)])

    def _with(self, input_ids: Tensor, features: Tensor) -> Tensor:
        embeddings = self.model.get_input_embeddings()(input_ids)
        places = visual_mask(input_ids, self.visual_token_ids)[..., None].to(embeddings.device)
        return embeddings.masked_scatter(places, features.to(embeddings.device, embeddings.dtype))
