"""Low-rank changes of frozen matrices while they are trained (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_guard.smol_model.adapter import changed_matrices

UP_SCALE = 2.0
"""``up`` is used times this: it starts at zero, and so it catches up with `down` sooner at the same learning rate."""


class _ChangedProduct(torch.autograd.Function):
    """``x (W + up down)^T`` and its gradients, written out for the CPU.

    The changed matrix is made once a step and rounded to bfloat16, as it is in the assembled model. On a CPU with
    matrix units that is an eighth of the product's own time; adding a second product to the first takes several times
    as long as both. The gradient for x multiplies by the matrix itself, which the library does several times slower
    than by a transposed one, so a transposed copy of W is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Tensor, turned: Tensor, down: Tensor, up: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, turned, down, up)
        ctx.shape = x.shape
        out = F.linear(flat, torch.addmm(frozen, up, down))
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, turned, down, up = ctx.saved_tensors
        flat = gradients[0].reshape(-1, gradients[0].shape[-1]).to(x.dtype)
        to_x = F.linear(flat, torch.addmm(turned, down.t(), up.t()))
        return to_x.view(ctx.shape), None, None, (flat @ up).t() @ x, flat.t() @ F.linear(x, down)


class LowRankLinear(nn.Module):
    """``x (W + up down)^T`` with W frozen in bfloat16; only ``down`` [r, in] and ``up`` [out, r] are trained.

    ``up`` begins at zero, so the first step sees the language model as it came.
    """

    def __init__(self, frozen: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out_size, in_size = frozen.shape
        kept = frozen.detach().to(torch.bfloat16)
        self.register_buffer("frozen", kept)
        self.register_buffer("turned", kept.t().contiguous())
        self.down = nn.Parameter(torch.randn(rank, in_size, generator=generator) * in_size**-0.5)
        self.up = nn.Parameter(torch.zeros(out_size, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The changed product, in bfloat16."""
        low = torch.bfloat16
        up, down = (UP_SCALE * self.up).to(low), self.down.to(low)
        changed: Tensor = _ChangedProduct.apply(
            x.to(low), self.get_buffer("frozen"), self.get_buffer("turned"), down, up
        )
        return changed


def make_low_rank(language_model: nn.Module, rank: int, seed: int) -> dict[str, LowRankLinear]:
    """Replace the matrices of a Llama decoder by `LowRankLinear`, freeze the rest; the new modules by name."""
    generator = torch.Generator().manual_seed(seed)
    for weight in language_model.parameters():
        weight.requires_grad_(False)
    made = {}
    for name, module in list(changed_matrices(language_model)):
        made[name] = LowRankLinear(module.get_parameter("weight"), rank, generator)
        holder, _, last = name.rpartition(".")
        setattr(language_model.get_submodule(holder), last, made[name])
    return made
