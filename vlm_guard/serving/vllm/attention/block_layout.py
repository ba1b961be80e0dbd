"""What guards ask of the way in which a backend keeps keys and values in blocks, and of what attends over them."""

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from vlm_guard.kernels.torch_backend import Products

if TYPE_CHECKING:
    from vlm_guard.serving.vllm.attention.block_attention import BlockCall, BlockEdit


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
        """From block numbers [N, n] to where the first `length` keys are found, for all layers."""
        ...

    def read(self, cache: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [N, G, K, D] of a layer; K is a multiple of `part`."""
        ...


class ProductLayout(BlockLayout, Protocol):
    """A layout whose keys and values are multiplied where they lie, by code that torch compiles."""

    def products(self, cache: Tensor, places: Tensor) -> BlockProducts:
        """Attention's two products with the keys and values of a layer."""
        ...


class DecodeAttention(Protocol):
    """Edited attention of one new token each of several requests."""

    @property
    def layout(self) -> BlockLayout:
        """Of the cache's blocks."""
        ...

    def attend(self, call: "BlockCall", edit: "BlockEdit") -> Tensor:
        """The outputs [N, H, D] of a call with an edit."""
        ...

    def scores(self, call: "BlockCall") -> Tensor:
        """[N, H, 1, K] scores of a call before the softmax and any edit, in float32; -inf on masked keys."""
        ...
