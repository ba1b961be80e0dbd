"""Attention over the blocks of vLLM's CPU cache: where keys lie, every kind of edit, compiled and not."""

import logging
import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from vlm_guard.kernels.attention_edit import AttentionEdit, Segments
from vlm_guard.kernels.edited_attention import edited_attention
from vlm_guard.kernels.policies import MoveSinksToContent, MoveSinksToRest
from vlm_guard.kernels.stacked_edits import stack_edits
from vlm_guard.kernels.torch_backend import attend_with, scores_with
from vlm_guard.serving.vllm.attention.block_attention import BlockAttention, BlockCall, BlockEdit
from vlm_guard.serving.vllm.backends.cpu_blocks import CPUBlocks

HEADS, GROUPS, DIM, SIZE = 6, 2, 16, 64
LENGTHS = [70, 97, 40]
EDITS = {
    "bias": lambda: AttentionEdit(bias=torch.randn(3, HEADS, 1, 40)),
    "gain": lambda: AttentionEdit(gain=torch.rand(3, 1, 1, 90)),
    "slope and head scale": lambda: AttentionEdit(
        slope=torch.rand(3, HEADS, 1, 31), head_scale=torch.rand(3, HEADS) + 0.5
    ),
    "own value": lambda: AttentionEdit(bias=torch.randn(3, 1, 1, 8), self_mix=torch.rand(3, HEADS)),
    "sinks to the rest": lambda: AttentionEdit(
        segments=Segments(torch.randint(0, 2, (3, 66), dtype=torch.uint8)), policy=MoveSinksToRest(move_fraction=0.8)
    ),
    "sinks of each head to content": lambda: AttentionEdit(
        segments=Segments(torch.randint(0, 4, (3, HEADS, 40), dtype=torch.uint8)),
        policy=MoveSinksToContent(move_fraction=0.6, min_content_share=0.0, min_visual_mass=0.0),
    ),
    "a policy in some rows": lambda: AttentionEdit(
        segments=Segments(torch.randint(0, 2, (3, 66), dtype=torch.uint8)),
        policy=MoveSinksToRest(move_fraction=0.8),
        policy_rows=torch.tensor([[True], [False], [True]]),
    ),
}


class Rows:
    """Three requests of different lengths with keys and values in blocks, and the same one by one."""

    def __init__(self, dtype=torch.float32, sinks=False, softcap=None):
        torch.manual_seed(5)
        self.layout = CPUBlocks(GROUPS, SIZE)
        self.cache = torch.randn(9, GROUPS, SIZE, 2 * DIM, dtype=dtype)
        self.blocks = blocks = torch.tensor([[3, 8], [1, 5], [7, 0]])
        self.key, self.value = (torch.randn(3, GROUPS, max(LENGTHS), DIM, dtype=dtype) for _ in range(2))
        for row, length in enumerate(LENGTHS):
            for place in range(length):
                block = self.cache[blocks[row, place // SIZE]].view(GROUPS, 2, -1)
                inside = place % SIZE
                block[:, 0].view(GROUPS, DIM, SIZE)[:, :, inside] = self.key[row, :, place]
                block[:, 1].view(GROUPS, SIZE, DIM)[:, inside] = self.value[row, :, place]
        own = torch.stack([self.value[row, :, length - 1] for row, length in enumerate(LENGTHS)])
        keys = -(-max(LENGTHS) // 32) * 32
        self.call = BlockCall(
            query=torch.randn(3, HEADS, DIM, dtype=dtype),
            own_value=own,
            cache=self.cache,
            places=self.layout.places(blocks, max(LENGTHS)),
            mask=(torch.arange(keys) < torch.tensor(LENGTHS)[:, None])[:, None, None],
            scaling=DIM**-0.5,
            softcap=softcap,
            sinks=torch.randn(HEADS) if sinks else None,
        )
        self.keys = keys

    def reference(self, edit):
        """[3, H, D] in float64, over the keys as they were before they went into blocks."""
        longest = max(LENGTHS)
        call = BlockCall(
            query=self.call.query.double(),
            own_value=self.call.own_value.double(),
            cache=self.cache,
            places=self.call.places,
            mask=self.call.mask[..., :longest],
            scaling=self.call.scaling,
            softcap=self.call.softcap,
            sinks=None if self.call.sinks is None else self.call.sinks.double(),
        )
        key, value = self.key.double(), self.value.double()
        problem = call.problem(call.query[:, :, None], key, value, edit)
        return edited_attention(problem, "reference").output[:, 0]


def first_rows(edit, row):
    """The edit of one request."""
    terms = {name: getattr(edit, name) for name in ("bias", "gain", "slope", "head_scale", "self_mix")}
    own = {name: None if term is None else term[row : row + 1] for name, term in terms.items()}
    segments = None if edit.segments is None else Segments(edit.segments.ids[row : row + 1])
    return AttentionEdit(**own, segments=segments, policy=edit.policy)


@pytest.mark.parametrize(("sinks", "softcap"), [(False, None), (True, 2.0)])
@pytest.mark.parametrize("kind", EDITS)
def test_the_products_over_blocks_and_the_gathered_keys_give_what_the_reference_gives(kind, sinks, softcap):
    rows = Rows(sinks=sinks, softcap=softcap)
    edit = EDITS[kind]()
    expected = rows.reference(edit)
    made = BlockEdit.of(edit, rows.keys)
    gathered = BlockAttention(rows.layout, HEADS, compiles=False).attend(rows.call, made)
    products = rows.layout.products(rows.cache, rows.call.places)
    problem = rows.call.problem(rows.call.query[:, :, None], products.one, products.one, made.edit)
    in_place = attend_with(problem, slice(0, 1), products).output[:, 0]
    for found in (gathered, in_place):
        assert (found - expected).abs().max() < 1e-5
    plain = rows.reference(AttentionEdit())
    assert (expected - plain).abs().max() > 1e-3, "the edit does nothing"


def expected_scores(rows):
    """[3, H, 1, K] in float64, over the keys as they were before they went into blocks."""
    key = torch.nn.functional.pad(rows.key.double(), (0, 0, 0, rows.keys - max(LENGTHS)))
    scores = (
        rows.call.scaling
        * rows.call.query.double()[:, :, None]
        @ key.repeat_interleave(HEADS // GROUPS, 1).transpose(2, 3)
    )
    cap = rows.call.softcap
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    return scores.masked_fill(~rows.call.mask, float("-inf"))


def assert_scores(found, expected):
    assert found.dtype == torch.float32 and torch.equal(found.isneginf(), expected.isneginf())
    assert torch.nan_to_num(found.double() - expected, nan=0.0).abs().max() < 1e-5


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_scores_are_those_of_the_keys_that_each_row_may_see(softcap):
    rows = Rows(softcap=softcap)
    assert_scores(BlockAttention(rows.layout, HEADS, compiles=False).scores(rows.call), expected_scores(rows))
    products = rows.layout.products(rows.cache, rows.call.places)
    problem = rows.call.problem(rows.call.query[:, :, None], products.one, products.one, AttentionEdit())
    assert_scores(scores_with(problem, products, True), expected_scores(rows))


def test_keys_are_read_where_they_were_written():
    rows = Rows()
    key, value = rows.layout.read(rows.cache, rows.call.places)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(key[row, :, :length], rows.key[row, :, :length])
        assert torch.equal(value[row, :, :length], rows.value[row, :, :length])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM, for which this is compiled, is not installed")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++, which is not installed")
@pytest.mark.parametrize("kind", ["slope and head scale", "sinks of each head to content"])
def test_compiled_is_the_same_also_for_other_requests_and_lengths(kind, caplog):
    rows, edit = Rows(), EDITS[kind]()
    attention = BlockAttention(rows.layout, HEADS)
    made = BlockEdit.of(edit, rows.keys)
    with caplog.at_level(logging.WARNING):
        assert (attention.attend(rows.call, made) - rows.reference(edit)).abs().max() < 1e-5
        assert_scores(attention.scores(rows.call), expected_scores(rows))
        for count in (1, 2):
            some = replace(
                rows.call,
                query=rows.call.query[:count].clone(),
                own_value=None,
                places=rows.layout.places(rows.blocks[:count], max(LENGTHS[:count])),
                mask=rows.call.mask[:count, ..., : -(-max(LENGTHS[:count]) // 32) * 32].clone(),
            )
            alone = stack_edits([first_rows(edit, row) for row in range(count)], HEADS)
            found = attention.attend(some, BlockEdit.of(alone, some.mask.shape[-1]))
            assert (found - rows.reference(edit)[:count]).abs().max() < 1e-5
            assert_scores(attention.scores(some), expected_scores(rows)[:count, ..., : some.mask.shape[-1]])
    assert not caplog.records, "it went on uncompiled"
    half = Rows(torch.bfloat16)
    error = (attention.attend(half.call, made).double() - half.reference(edit)).abs().max()
    eager = BlockAttention(half.layout, HEADS, compiles=False).attend(half.call, made)
    assert error <= 1.05 * (eager.double() - half.reference(edit)).abs().max() + 2**-9


def test_where_nothing_can_be_compiled_a_warning_says_so_once_and_answers_are_the_same(monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise torch._dynamo.exc.BackendCompilerFailed(fails, RuntimeError("No working C++ compiler found"), None)

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fails)
    rows, edit = Rows(), EDITS["gain"]()
    attention, made = BlockAttention(rows.layout, HEADS), BlockEdit.of(edit, rows.keys)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert (attention.attend(rows.call, made) - rows.reference(edit)).abs().max() < 1e-5
    (record,) = caplog.records
    assert "cannot be compiled here" in record.message and "C++ compiler" in record.message
