"""The problems the backends are checked on: shapes, edits, masks and layouts, each by name."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import TEXT_SINK, VISUAL_CONTENT, VISUAL_SINK, AttentionEdit, Segments
from vlm_guard.kernels.edited_attention import AttentionProblem
from vlm_guard.kernels.policies import MoveSinksToContent, MoveSinksToRest, SegmentPolicy

EDITS = (
    "none", "var", "act", "act some heads", "outside policy", "bias", "bias and gain", "slope", "everything",
    "masses only",
)  # fmt: skip
MASKS = ("none", "causal", "left padding", "padded row", "float mask", "mask per head", "lowest float", "static cache")
LAYOUTS = ("contiguous", "strided")
OUTPUT_EDITS = ("none", "head scale", "head scale of rows", "self mix", "both")
SEGMENTS = ("picture", "text only", "content only", "sinks only", "short", "per head")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem: B, H, G, R, K, D, Dv, an edit, a mask, a layout and segments by name.

    The edits "everything" and "outside policy" have both output edits whatever `output_edit` says.
    """

    batch: int = 1
    heads: int = 2
    groups: int = 2
    rows: int = 1
    keys: int = 70
    head_dim: int = 32
    value_dim: int | None = None
    edit: str = "none"
    output_edit: str = "none"
    mask: str = "none"
    layout: str = "contiguous"
    segments: str = "picture"
    logits: float = 1.0
    model_terms: bool = False

    @property
    def name(self) -> str:
        """Everything that tells this case from others."""
        sizes = f"B{self.batch} H{self.heads} G{self.groups} R{self.rows} K{self.keys} D{self.head_dim}"
        value = f" Dv{self.value_dim}" if self.value_dim else ""
        extra = (" model terms" if self.model_terms else "") + (f" logits x{self.logits:g}" * (self.logits != 1))
        edits = self.edit + (f" with {self.output_edit}" if self.output_edit != "none" else "")
        return f"{sizes}{value}, {edits}, {self.mask}, {self.layout}, {self.segments}{extra}"


class KeepHalf:
    """A policy the kernels do not know: visual sinks double, text sinks halve, content gains by the text's mass."""

    def weights(self, masses: Tensor) -> Tensor:
        """See `SegmentPolicy.weights`."""
        text = masses[..., 0]
        one = torch.ones_like(text)
        return torch.stack((one, 0.5 * one, 2 * one, 1 + text), -1)


def build_problem(case: Case, dtype: torch.dtype, device: torch.device) -> AttentionProblem:
    """The case's problem, the same numbers for every dtype and device (up to rounding)."""
    random = torch.Generator().manual_seed(sum(map(ord, case.name)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    value_dim = case.value_dim or case.head_dim
    query = draw(case.batch, case.heads, case.rows, case.head_dim) * case.logits
    key = draw(case.batch, case.groups, case.keys, case.head_dim)
    value = draw(case.batch, case.groups, case.keys, value_dim)
    query, key, value = (_lay_out(tensor.to(device, dtype), case.layout) for tensor in (query, key, value))
    mask, positions = _build_mask(case, dtype, random)
    edit, own_value = _build_edit(case, random), None
    if edit.self_mix is not None:
        own_value = draw(case.batch, case.groups, case.rows, value_dim).to(device, dtype)
    return AttentionProblem(
        query=query,
        key=key,
        value=value,
        edit=_edit_to(edit, device),
        scaling=case.head_dim**-0.5,
        mask=None if mask is None else mask.to(device),
        row_positions=None if positions is None else positions.to(device),
        softcap=5.0 if case.model_terms else None,
        sink_logits=draw(case.heads).to(device) if case.model_terms else None,
        position_bias=draw(case.batch, case.heads, case.rows, case.keys).to(device) if case.model_terms else None,
        own_value=own_value,
    )


def _lay_out(tensor: Tensor, layout: str) -> Tensor:
    """Contiguous, or as a model's projection leaves it: [B, K, heads, D] seen as [B, heads, K, D], every other key."""
    if layout == "contiguous":
        return tensor
    return tensor.transpose(1, 2).repeat_interleave(2, 1)[:, ::2].transpose(1, 2)


def _build_mask(case: Case, dtype: torch.dtype, random: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """(mask, row positions) by name."""
    batch, rows, keys = case.batch, case.rows, case.keys
    positions = torch.arange(keys - rows, keys)[None]
    if case.mask == "none":
        return None, None
    if case.mask == "causal":
        return None, positions
    if case.mask == "static cache":
        return None, torch.arange(rows)[None] + torch.arange(batch)[:, None] + (keys - rows) // 2
    allowed = (torch.arange(keys) <= positions[..., None])[None].expand(batch, 1, rows, keys).clone()
    if case.mask in ("left padding", "padded row"):
        start = torch.arange(1, batch + 1) * (keys // (batch + 2))
        allowed &= (torch.arange(keys) >= start[:, None])[:, None, None]
        if case.mask == "padded row":
            allowed[0, :, 0] = False
        return allowed, None
    if case.mask == "mask per head":
        kept = torch.rand(batch, case.heads, rows, keys, generator=random) < 0.7
        return kept & allowed, None
    lowest = torch.finfo(dtype).min if case.mask == "lowest float" else float("-inf")
    additive = torch.randn(batch, 1, rows, keys, generator=random).to(dtype)
    return additive.masked_fill(~allowed, lowest), None


def _build_edit(case: Case, random: torch.Generator) -> AttentionEdit:
    policies: dict[str, SegmentPolicy] = {
        "var": MoveSinksToContent(move_fraction=0.6, min_content_share=0.9, min_visual_mass=0.7),
        "everything": MoveSinksToContent(move_fraction=0.6, min_content_share=0.9, min_visual_mass=0.7),
        "act": MoveSinksToRest(move_fraction=0.5),
        "act some heads": MoveSinksToRest(move_fraction=0.5, heads=torch.arange(case.heads) % 3 != 1),
        "outside policy": KeepHalf(),
    }
    described = max(1, case.keys - 7) if case.segments == "short" else case.keys
    heads = torch.rand(case.batch, case.heads, generator=random)
    bias = gain = slope = head_scale = self_mix = policy_rows = None
    if case.edit in ("bias", "bias and gain"):
        bias = torch.randn(1, 1, 1, described, generator=random)
    if case.edit == "bias and gain":
        gain = torch.rand(case.batch, case.heads, 1, described, generator=random)
    if case.edit == "slope":
        slope = 2 * torch.rand(case.batch, 1, case.rows, described, generator=random) - 1
    if case.edit == "everything":
        bias = torch.randn(case.batch, case.heads, case.rows, described, generator=random)
        bias = bias.masked_fill(torch.rand(bias.shape, generator=random) < 0.05, float("-inf"))
        gain = torch.rand(1, case.heads, case.rows, described, generator=random)
        slope = torch.rand(case.batch, case.heads, 1, max(1, described - 3), generator=random) - 0.5
        head_scale, self_mix = 0.5 + heads, 0.3 * heads
        policy_rows = torch.arange(case.rows)[None] % 3 != 1
    if case.edit == "outside policy" or case.output_edit == "both":
        head_scale, self_mix = 0.5 + heads, 0.3 * heads
    if case.output_edit == "head scale":
        head_scale = 0.5 + heads
    if case.output_edit == "head scale of rows":
        head_scale = 0.5 + torch.rand(case.batch, case.heads, case.rows, generator=random)
    if case.output_edit == "self mix":
        self_mix = 0.3 * heads
    segments = None
    if case.edit in policies or case.edit == "masses only":
        segments = Segments(_segment_ids(case, described, random))
    return AttentionEdit(
        bias=bias,
        gain=gain,
        slope=slope,
        segments=segments,
        policy=policies.get(case.edit),
        policy_rows=policy_rows,
        head_scale=head_scale,
        self_mix=self_mix,
    )


def _segment_ids(case: Case, described: int, random: torch.Generator) -> Tensor:
    """[B, P] or [B, H, P] uint8: a picture between text with a few sinks, or one segment for every key."""
    single = {"text only": 0, "content only": VISUAL_CONTENT}
    shape = (case.batch, case.heads, described) if case.segments == "per head" else (case.batch, described)
    if case.segments in single:
        return torch.full(shape, single[case.segments], dtype=torch.uint8)
    if case.segments == "sinks only":
        return torch.randint(TEXT_SINK, VISUAL_SINK + 1, shape, generator=random).to(torch.uint8)
    index = torch.arange(described).expand(shape)
    visual = (index >= described // 8) & (index < described - described // 6)
    sink = (torch.rand(shape, generator=random) < 0.06) | (index == 0)
    ids = torch.where(visual, VISUAL_CONTENT, 0)
    return torch.where(sink, torch.where(visual, VISUAL_SINK, TEXT_SINK), ids).to(torch.uint8)


def _edit_to(edit: AttentionEdit, device: torch.device) -> AttentionEdit:
    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    policy = edit.policy
    if isinstance(policy, MoveSinksToRest):
        policy = MoveSinksToRest(move_fraction=policy.move_fraction, heads=move(policy.heads))
    return AttentionEdit(
        bias=move(edit.bias),
        gain=move(edit.gain),
        slope=move(edit.slope),
        segments=None if edit.segments is None else Segments(edit.segments.ids.to(device)),
        policy=policy,
        policy_rows=move(edit.policy_rows),
        head_scale=move(edit.head_scale),
        self_mix=move(edit.self_mix),
    )


def torch_cases() -> list[tuple[Case, str]]:
    """Every edit with every mask, and every layout, segment form, head grouping and dimension, in every dtype."""
    cases = [
        Case(edit=edit, mask=mask, batch=2, heads=4, groups=2, rows=rows, keys=37, head_dim=24)
        for edit, mask, rows in product(EDITS, MASKS, (1, 5))
    ]
    cases += [
        Case(edit=edit, segments=segments, layout=layout, batch=2, heads=4, groups=1, rows=3, keys=41, mask="causal")
        for edit, segments, layout in product(("var", "act", "everything"), SEGMENTS, LAYOUTS)
    ]
    cases += [
        Case(edit="var", batch=batch, heads=heads, groups=groups, rows=rows, keys=keys, head_dim=head_dim)
        for batch, (heads, groups), rows, keys, head_dim in zip(
            (1, 2, 3, 8, 1),
            ((2, 2), (4, 1), (7, 1), (8, 1), (14, 2)),
            (1, 2, 1, 4, 9),
            (5, 17, 33, 64, 129),
            (24, 64, 80, 128, 256),
        )
    ]
    cases += [
        Case(edit="everything", model_terms=True, mask="left padding", rows=3, batch=2),
        Case(edit="var", logits=1000.0, rows=4),
        Case(edit="none", value_dim=16, rows=4),
        Case(edit="slope", batch=2, heads=4, groups=2, rows=3, keys=33, output_edit="head scale of rows"),
    ]
    return [(case, dtype) for case in cases for dtype in ("float32", "bfloat16", "float16")]


def interpreter_cases() -> list[tuple[Case, str]]:
    """What the fused kernels are checked on without a GPU: small, every branch of the kernels at least once."""
    decode = [
        Case(keys=5, head_dim=24),
        Case(edit="var", batch=2, heads=8, groups=2, keys=133, head_dim=64, mask="left padding"),
        Case(edit="var", heads=7, groups=1, keys=70, head_dim=80, layout="strided"),
        Case(edit="act some heads", heads=8, groups=1, keys=65, head_dim=128),
        Case(edit="act", batch=2, heads=4, groups=2, keys=67, segments="per head", mask="padded row"),
        Case(edit="everything", heads=4, groups=2, rows=3, keys=45, model_terms=True, mask="mask per head"),
        Case(edit="outside policy", heads=4, groups=4, keys=71, segments="short"),
        Case(edit="bias and gain", head_dim=256, groups=1, keys=40, segments="short"),
        Case(edit="slope", heads=4, groups=2, rows=2, keys=39, segments="short", output_edit="head scale of rows"),
        Case(edit="var", batch=8, heads=2, groups=2, keys=33, head_dim=24, mask="static cache"),
        Case(edit="var", keys=90, logits=1000.0),
        Case(edit="masses only", value_dim=64, keys=64, mask="lowest float"),
    ]
    prefill = [
        Case(rows=33, keys=70, mask="causal", groups=1, head_dim=24),
        Case(edit="var", rows=40, keys=150, mask="causal", layout="strided", head_dim=64),
        Case(edit="act", heads=7, groups=1, rows=5, keys=100, mask="left padding", batch=2, head_dim=24),
        Case(edit="act", heads=4, groups=2, rows=17, keys=90, segments="per head", mask="padded row"),
        Case(edit="outside policy", rows=18, keys=75, mask="causal"),
        Case(edit="everything", rows=18, keys=75, model_terms=True, mask="float mask", segments="short"),
        Case(edit="var", rows=20, keys=300, groups=1, mask="static cache", head_dim=24),
        Case(
            edit="slope", rows=20, keys=40, batch=2, mask="left padding", head_dim=24, output_edit="head scale of rows"
        ),
        Case(edit="none", rows=20, keys=300, groups=1, heads=1, mask="causal", model_terms=True, head_dim=24),
        Case(edit="act", rows=20, keys=100, segments="sinks only", mask="causal"),
        Case(edit="var", rows=20, keys=70, segments="content only", head_dim=24),
        Case(edit="var", rows=20, keys=70, segments="text only", logits=1000.0, head_dim=24),
        Case(edit="bias", rows=20, keys=70, value_dim=16, mask="lowest float", model_terms=True),
    ]
    narrow = ("bfloat16", "float16")
    cases = [(case, "float32") for case in decode + prefill]
    return cases + [(case, narrow[index % 2]) for index, case in enumerate(decode + prefill)]


def whole_grid() -> list[tuple[Case, str]]:
    """The grid for a GPU: all head groupings, dimensions, lengths, edits and masks, dtypes in turn (about 700)."""
    cases = []
    groupings = ((4, 4), (8, 2), (14, 2), (16, 2))
    number = 0
    for grouping, head_dim, keys, rows in product(groupings, (24, 64, 80, 128, 256), (5, 333, 1024), (1, 2, 33, 200)):
        rows = min(rows, keys)
        for _ in range(3):
            number += 1
            heads, groups = grouping
            cases.append(
                Case(
                    batch=(1, 2, 8)[number % 3],
                    heads=heads,
                    groups=groups,
                    rows=rows,
                    keys=keys,
                    head_dim=head_dim,
                    value_dim=64 if number % 11 == 0 else None,
                    edit=EDITS[number % len(EDITS)],
                    mask=MASKS[number // 3 % len(MASKS)],
                    layout=LAYOUTS[number // 5 % 2],
                    segments=SEGMENTS[number // 7 % len(SEGMENTS)],
                    logits=100.0 if number % 13 == 0 else 1.0,
                    model_terms=number % 9 == 0,
                )
            )
    dtypes = ("bfloat16", "float16", "float32")
    return [(case, dtypes[index // 2 % 3]) for index, case in enumerate(dict.fromkeys(cases))]
