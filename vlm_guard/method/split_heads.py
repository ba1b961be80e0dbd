"""Attention heads that tensor parallelism spreads over processes: each computes its own, some methods need them all.

Under transformers' tensor parallelism (`DistributedConfig(tp_size=2, tp_plan="auto")`) a process has H / size of the
query heads, in order of its rank, and hidden states are the same everywhere. What a method decides within a head needs
nothing. What it decides by comparing or averaging heads goes through `all_heads`, and what it then has for every head
through `own_heads`. Both return their argument as it is in a model that is not spread.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from vlm_guard.method.target import GuardTarget


class HeadSplit(Protocol):
    """How an engine other than transformers spreads the heads over processes."""

    @property
    def rank(self) -> int:
        """Which share of the heads this process has, counted from 0."""
        ...

    def gather(self, values: Tensor, dim: int) -> Tensor:
        """The values [..., heads of this process, ...] of all processes, in order, along `dim`."""
        ...


def all_heads(values: Tensor, dim: int, target: "GuardTarget") -> Tensor:
    """The values of every head.

    Args:
        values: [..., heads of this process, ...]; every process must call this with its own.
        dim: the dimension of the heads.
        target: the model.

    Returns:
        [..., H, ...], the same in every process.
    """
    if values.shape[dim] >= target.architecture.heads:
        return values
    if target.split is not None:
        return target.split.gather(values, dim)
    mesh = _mesh(target)
    if mesh is None:
        return values
    group = mesh["tp"].get_group()
    parts = [torch.empty_like(values.contiguous()) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values.contiguous(), group=group)
    return torch.cat(parts, dim)


def own_heads(values: Tensor, dim: int, count: int, target: "GuardTarget") -> Tensor:
    """Of values [..., H, ...] those of the `count` heads of this process, [..., count, ...]."""
    if values.shape[dim] <= count:
        return values
    if target.split is not None:
        return values.narrow(dim, target.split.rank * count, count)
    mesh = _mesh(target)
    if mesh is None:
        return values
    return values.narrow(dim, mesh["tp"].get_local_rank() * count, count)


def refuse_split_tower(tower: nn.Module, method: str) -> None:
    """Refuse a vision tower whose own heads are spread over processes, for a method that adds them up.

    Raises:
        ValueError: they are (the towers of most families are not).
    """
    if any(hasattr(parameter, "device_mesh") for parameter in tower.parameters()):
        raise ValueError(
            f"{method} adds up attention heads inside the vision tower, which tensor parallelism spreads over "
            "processes in this model; load it without tp_plan for this method"
        )


def _mesh(target: "GuardTarget") -> "DeviceMesh | None":
    """The processes that the model's heads are spread over; None where one has them all."""
    return getattr(target.model, "_device_mesh", None) if (target.model.tp_size or 1) > 1 else None
