"""Layers that choose their keys themselves (sparse attention), and the mask that says which.

Such a model looks at the name of its attention implementation: for "eager" and "sdpa" it puts the chosen keys into the
mask, for any other name it hands over their numbers, which a special kernel would read. A guarded model has a name of
its own, so the mask is made here of the numbers, as the model would have made it.
"""

from typing import Any

import torch
from torch import Tensor, nn

# transformers' names of the arguments: numbers of keys, or of blocks of keys.
KEYS, BLOCKS = "indices", "block_indices"


def mask_of_chosen_keys(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> tuple[Tensor | None, dict[str, Any]]:
    """The mask with the layer's choice in it, and the other arguments without the numbers.

    Args:
        module: the attention module.
        query: [B, H, Q, D].
        key: [B, G, K, D].
        mask: [B or 1, 1 or H, Q, K] bool or float.
        kwargs: the other arguments of the attention call.

    Raises:
        ValueError: the layer chooses keys in a way that is not known here.
    """
    keys, blocks = kwargs.get(KEYS), kwargs.get(BLOCKS)
    if keys is None and blocks is None:
        return mask, kwargs
    left = {name: value for name, value in kwargs.items() if name not in (KEYS, BLOCKS)}
    if keys is not None:
        return _of_keys(keys, query, key, mask), left
    build = getattr(getattr(module, "indexer", None), "build_block_mask", None)
    if build is None:
        raise ValueError(f"{type(module).__name__} chooses blocks of keys in a way that cannot be put into a mask")
    count, length = query.shape[2], key.shape[2]
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(length - count, length, device=query.device)
    positions = (positions if positions.ndim > 1 else positions[None]).expand(query.shape[0], -1)
    return build(blocks, mask, length, query.dtype, query.device, positions), left


def _of_keys(chosen: Tensor, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """The mask where `chosen` [B, Q, N] keys stay."""
    batch, count, length = query.shape[0], query.shape[2], key.shape[2]
    left_out = torch.ones(batch, 1, count, length, dtype=torch.bool, device=query.device)
    left_out.scatter_(-1, chosen.long()[:, None], False)
    if mask is None:
        return ~left_out
    mask = mask[..., :length]
    if mask.dtype == torch.bool:
        return mask & ~left_out
    return mask.masked_fill(left_out, torch.finfo(mask.dtype).min)
