"""What guards ask of the way in which a backend keeps keys and values in blocks."""

from typing import Protocol

from torch import Tensor

from vlm_guard.kernels.torch_backend import Products


class BlockProducts(Products, Protocol):
    """Attention's two products over blocks."""

    @property
    def one(self) -> Tensor:
        """[1, G, 1, D], any key or value: what says how many groups there are, and of what size."""
        ...


class BlockLayout(Protocol):
    """How a backend keeps keys and values in the blocks of a layer's cache."""

    @property
    def part(self) -> int:
        """So many keys are read at once: a block, or a part of one."""
        ...

    def places(self, blocks: Tensor, length: int) -> Tensor:
        """From block numbers [N, n] to where `read` and `products` find the first `length` keys, for all layers."""
        ...

    def read(self, cache: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [N, G, K, D] of a layer; K is a multiple of `part`."""
        ...

    def products(self, cache: Tensor, places: Tensor) -> BlockProducts:
        """Attention's two products with the keys and values of a layer."""
        ...
