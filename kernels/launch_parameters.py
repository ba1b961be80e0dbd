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
    """Sizes of one call: B batch, H heads, G groups, R rows, K keys, D and Dv, bytes of an element."""

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


def choose_launch(sizes: AttentionSizes, multiprocessors: int, shared_memory: int) -> LaunchParameters:
    """Launch parameters for a device with that many multiprocessors and bytes of shared memory per block."""
    lines = sizes.rows * (sizes.heads // sizes.groups)
    if lines <= DECODE_LINES:
        return _decode_launch(sizes, lines, multiprocessors, shared_memory)
    return _prefill_launch(sizes, lines, multiprocessors, shared_memory)


def _decode_launch(sizes: AttentionSizes, lines: int, multiprocessors: int, shared_memory: int) -> LaunchParameters:
    width = power_of_two(sizes.head_dim, at_least=16) + power_of_two(sizes.value_dim, at_least=16)
    # 64 keys of K and V are 32 KiB at D = 128 in 16 bit. Wider rows take fewer keys, so that the tile in registers
    # and a stage of the pipeline keep that size.
    block_n = 64 if width * sizes.element_bytes <= 512 else 32
    chunks = _ceil(sizes.keys, block_n)
    # Two programs per multiprocessor hide each other's start and end; a split shorter than two chunks would spend
    # more on its start and on the merge than on its keys.
    wanted = _ceil(2 * multiprocessors, sizes.batch * sizes.groups)
    splits = max(1, min(wanted, _ceil(chunks, 2), MAX_SPLITS))
    splits = _ceil(chunks, _ceil(chunks, splits))
    return LaunchParameters(
        decode=True,
        block_m=power_of_two(lines * (4 if sizes.segmented else 1), at_least=16),
        block_n=block_n,
        block_s=16,
        splits=splits,
        warps=4,
        stages=_stages(width * block_n * sizes.element_bytes, shared_memory),
    )


def _prefill_launch(sizes: AttentionSizes, lines: int, multiprocessors: int, shared_memory: int) -> LaunchParameters:
    block_d = power_of_two(sizes.head_dim, at_least=16)
    block_dv = power_of_two(sizes.value_dim, at_least=16)
    narrow = max(block_d, block_dv) <= 128 and sizes.element_bytes <= 2
    # 8 warps hold two running outputs of 128 x 128 float32 in 128 registers a thread and the scores of a chunk in 32;
    # wider heads and float32 (which multiplies outside the matrix unit) take smaller tiles.
    block_m = min(128 if narrow else 32, power_of_two(lines, at_least=16))
    block_n = 64 if narrow else 32
    warps = 8 if block_m == 128 else 4
    tiles = _ceil(lines, block_m) * sizes.batch * sizes.groups
    chunks = _ceil(sizes.keys, block_n)
    splits = 1
    if 2 * tiles <= multiprocessors:
        splits = max(1, min(multiprocessors // tiles, chunks // 4, 16))
        splits = _ceil(chunks, _ceil(chunks, splits))
    stage = (block_d + block_dv) * block_n * sizes.element_bytes
    query_bytes = block_m * block_d * sizes.element_bytes
    return LaunchParameters(
        decode=False,
        block_m=block_m,
        block_n=block_n,
        block_s=16,
        splits=splits,
        warps=warps,
        stages=_stages(stage, shared_memory - query_bytes),
    )


def _stages(stage_bytes: int, shared_memory: int) -> int:
    """Three stages where two programs then still share a multiprocessor or one fits at all, else two, else one."""
    spare = shared_memory - 8 * 1024  # reductions and layout changes
    return max(1, min(3, spare // stage_bytes))


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
