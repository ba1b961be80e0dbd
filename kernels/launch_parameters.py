"""Block sizes, splits, warps and pipeline stages of the Triton kernels, chosen from sizes by stated reasons.

Nothing here was tuned on a GPU: the reasons are arithmetic (bytes in flight, registers, shared memory) and what the
assembler reports for each kernel; `kernels/README.md` has the figures.
"""

from dataclasses import dataclass

# A decode tile holds at most this many query lines (heads of a group times rows); more lines go to the prefill kernel.
DECODE_LINES = 16
# Splits are merged by one program that reads all of them at once.
MAX_SPLITS = 64


@dataclass(frozen=True, kw_only=True)
class AttentionSizes:
    """Sizes of one call: B batch, H heads, G groups, R rows, K keys, D and Dv, bytes of an element, and what it has."""

    batch: int
    heads: int
    groups: int
    rows: int
    keys: int
    head_dim: int
    value_dim: int
    element_bytes: int
    segmented: bool
    outside_policy: bool = False
    in_blocks: bool = False


@dataclass(frozen=True, kw_only=True)
class DeviceLimits:
    """What the choice depends on: multiprocessors, bytes of shared memory per block, compute capability (9, 0)."""

    multiprocessors: int
    shared_memory: int
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LaunchParameters:
    """How the kernels are launched.

    Attributes:
        decode: the split decode kernel; otherwise the tiled prefill kernel.
        block_m: query lines of a tile, in the decode kernel with their copies per segment.
        block_n: keys of a chunk.
        block_s: gathered sink keys of a chunk (prefill kernel).
        splits: parts the keys are divided into.
        warps: warps of a program.
        stages: chunks in the load pipeline, the one being computed included.
    """

    decode: bool
    block_m: int
    block_n: int
    block_s: int
    splits: int
    warps: int
    stages: int


def power_of_two(number: int, *, at_least: int = 1) -> int:
    """The smallest power of two that is no less than `number` and `at_least`."""
    return max(at_least, 1 << max(0, number - 1).bit_length())


def choose_launch(sizes: AttentionSizes, device: DeviceLimits) -> LaunchParameters:
    """Launch parameters of one call."""
    lines = sizes.rows * (sizes.heads // sizes.groups)
    if lines <= DECODE_LINES:
        return _decode_launch(sizes, lines, device)
    return _prefill_launch(sizes, lines, device)


def _decode_launch(sizes: AttentionSizes, lines: int, device: DeviceLimits) -> LaunchParameters:
    width = power_of_two(sizes.head_dim, at_least=16) + power_of_two(sizes.value_dim, at_least=16)
    # 64 keys of K and V are 32 KiB at D = 128 in 16 bit. Wider rows take fewer keys, so that the tile in registers
    # and a stage of the pipeline keep that size.
    block_n = 64 if width * sizes.element_bytes <= 512 else 32
    chunks = _ceil(sizes.keys, block_n)
    # Two programs per multiprocessor hide each other's start and end; a split shorter than two chunks would spend
    # more on its start and on the merge than on its keys.
    wanted = _ceil(2 * device.multiprocessors, sizes.batch * sizes.groups)
    return LaunchParameters(
        decode=True,
        block_m=power_of_two(lines * (4 if sizes.segmented else 1), at_least=16),
        block_n=block_n,
        block_s=16,
        splits=_even_splits(chunks, min(wanted, _ceil(chunks, 2), MAX_SPLITS)),
        warps=4,
        # Where a key is must be read first where keys lie in blocks, so that a third chunk does not get on its way and
        # only takes registers.
        stages=2 if sizes.in_blocks else _stages(width * block_n * sizes.element_bytes, device.shared_memory),
    )


def _prefill_launch(sizes: AttentionSizes, lines: int, device: DeviceLimits) -> LaunchParameters:
    block_d = power_of_two(sizes.head_dim, at_least=16)
    block_dv = power_of_two(sizes.value_dim, at_least=16)
    block_m, block_n = _prefill_tile(max(block_d, block_dv), sizes, device)
    block_m = min(block_m, power_of_two(lines, at_least=16))
    tiles = _ceil(lines, block_m) * sizes.batch * sizes.groups
    chunks = _ceil(sizes.keys, block_n)
    splits = 1
    if 2 * tiles <= device.multiprocessors:
        # Few rows leave most of the chip idle. A split costs its partial outputs in memory, so it takes four chunks.
        splits = _even_splits(chunks, min(device.multiprocessors // tiles, chunks // 4, 16))
    stage = (block_d + block_dv) * block_n * sizes.element_bytes
    query_bytes = block_m * block_d * sizes.element_bytes
    return LaunchParameters(
        decode=False,
        block_m=block_m,
        block_n=block_n,
        block_s=16,
        splits=splits,
        warps=8 if block_m >= 64 or block_d > 128 else 4,
        stages=_stages(stage, device.shared_memory - query_bytes),
    )


def _prefill_tile(width: int, sizes: AttentionSizes, device: DeviceLimits) -> tuple[int, int]:
    """(query lines, keys) of a tile that the assembler fits into registers without spilling (8 warps: 255 each)."""
    if sizes.element_bytes > 2 or width > 128:
        # float32 multiplies outside the matrix unit; two running outputs of 256 columns leave room for 32 lines.
        return 32, 32
    if not sizes.segmented:
        # One running output. More lines per key mean less traffic from the second-level cache.
        return 128, 64
    if device.capability >= (9, 0):
        # Two running outputs of 128 lines by 128 columns take 128 registers a thread; warp-group products read K and
        # V from shared memory, which leaves room for the scores of 32 keys.
        return 128, 64 if width <= 64 else 32
    return 64, 64


def _even_splits(chunks: int, wanted: int) -> int:
    """At most `wanted` splits, none of them empty."""
    per_split = _ceil(chunks, max(1, wanted))
    return _ceil(chunks, per_split)


def _stages(stage_bytes: int, shared_memory: int) -> int:
    """Three stages (two chunks on their way while one is computed) where shared memory holds them, else two or one."""
    spare = shared_memory - 8 * 1024  # reductions and layout changes
    return max(1, min(3, spare // stage_bytes))


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
