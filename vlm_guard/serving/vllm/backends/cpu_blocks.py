"""How vLLM's backend for the CPU keeps keys and values, and attention's two products over them.

A cache is [blocks, G, block size, 2 D]: of each block and key-value head its keys, transposed [D, block size], and
then its values [block size, D]. Blocks are large, so they are read in parts of 32 keys, as far as there are any.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CPUBlocks:
    """Reads parts of blocks; vLLM's blocks are multiples of these.

    Attributes:
        groups: G, key-value heads.
        block_size: keys of a block.
    """

    groups: int
    block_size: int
    part: ClassVar[int] = 32

    def places(self, blocks: Tensor, length: int) -> Tensor:
        """From block numbers [N, n] to [3, N, G, m] long, for the parts that hold the first `length` keys.

        The first says which half of a block and head a part's keys are in, counting the values' halves too; the second,
        which part of this half it is; the third, which its values are, counting the parts of all halves.
        """
        parts, count = self.block_size // self.part, -(-length // self.part)
        halves = (blocks[:, None] * self.groups + torch.arange(self.groups)[:, None]) * 2
        half = halves[..., None].expand(-1, -1, -1, parts)
        part = torch.arange(parts).expand_as(half)
        return (
            torch.stack((half, part, (half + 1) * parts + part))
            .flatten(3)[..., :count]
            .clone(memory_format=torch.contiguous_format)
        )

    def read(self, cache: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [N, G, 32 m, D]."""
        products = self.products(cache, places)
        _, rows, groups, count = places.shape
        key = products.key_parts().transpose(1, 2).reshape(rows, groups, -1, count * self.part)
        return key.transpose(2, 3), products.value_parts().reshape(rows, groups, count * self.part, -1)

    def products(self, cache: Tensor, places: Tensor) -> "CPUBlockProducts":
        """The products of attention with these keys and values, where they lie."""
        one = cache[:1, :, :1, : cache.shape[3] // 2]
        return CPUBlockProducts(cache, places.view(3, -1, places.shape[3]), one)


@dataclass(frozen=True, eq=False)
class CPUBlockProducts:
    """`vlm_guard.kernels.torch_backend.Products` as sums, which a compiler fuses with the reading of the blocks.

    Attributes:
        cache: of a layer.
        places: [3, N * G, m] long, of each row's parts; see `CPUBlocks.places`.
        one: [1, G, 1, D], any key.
    """

    cache: Tensor
    places: Tensor
    one: Tensor

    @property
    def keys(self) -> int:
        """K, keys in the parts of a row."""
        return self.places.shape[2] * CPUBlocks.part

    def key_parts(self) -> Tensor:
        """[N * G, m, D, 32]."""
        dim = self.cache.shape[3] // 2
        halves = self.cache.view(-1, dim, self.cache.shape[2] // CPUBlocks.part, CPUBlocks.part)
        return halves[self.places[0], :, self.places[1]]

    def value_parts(self) -> Tensor:
        """[N * G, m, 32, D]."""
        return self.cache.view(-1, CPUBlocks.part, self.cache.shape[3] // 2)[self.places[2]]

    def scores(self, query: Tensor, wide: torch.dtype, decides: bool) -> Tensor:
        """[N * G, R, K] products with queries [N * G, R, D], summed in `wide` in any case."""
        rows, count, _ = query.shape
        key = self.key_parts()[:, None].to(wide)
        return (query.to(wide)[:, :, None, :, None] * key).sum(3).view(rows, count, -1)

    def outputs(self, weights: Tensor) -> Tensor:
        """[N * G, R, D] products of weights [N * G, R, K] and values, summed in the weights' type."""
        # Parts and their keys stay two dimensions: one would cost a division at every step of the compiled sums.
        rows, count, _ = weights.shape
        parts = weights.view(rows, count, -1, CPUBlocks.part, 1)
        return (parts * self.value_parts()[:, None].to(weights.dtype)).sum((2, 3)).to(self.cache.dtype)
