"""Fine-grained causal tracing: which parts of a model carry what the image says (FCCT, AAAI 2026, arXiv 2511.05923).

A question that the model answers with "Yes" because of the image is run three times: as it is; with Gaussian noise over
the whole image; and with the noise, but with the output of one sub-layer at chosen tokens put back to its clean value.

    recovery rate = (P_patched - P_corrupted) / (P_clean - P_corrupted),    P the probability of "Yes"

The paper traces attention outputs, feed-forward outputs and hidden states of every layer at seven classes of tokens
over 500 pictures. Here: the same three components, at the last token (what IRI needs), at all visual tokens, or at the
text behind the image; the paper's further split by object position needs boxes. The strength of the noise is not
published: `noise` is this project's, in standard deviations of the normalised pixels. So is `min_drop`: where the noise
hardly changes the answer, a ratio says nothing, and the sample is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm_guard.method import (
    Fact,
    LayerPart,
    attending_parts,
    describe_architecture,
    replace_output,
    unwrap,
    visual_mask,
)

TokenClass = Literal["last", "visual", "text"]
COMPONENTS = ("attention", "mlp", "hidden")
_YES = ("Yes", " Yes", "yes", " yes")


@dataclass(frozen=True, kw_only=True)
class RecoveryRates:
    """Mean recovery rates by layer, and what they rest on.

    Attributes:
        attention: one number per layer, for the attention output; 0 for layers without attention.
        mlp: the same for the feed-forward output. hidden: for the layer's output.
        samples: number of samples used. skipped: those where the noise changed too little.
        clean: mean probability of "Yes" with the image. corrupted: with the noised one.
    """

    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    hidden: tuple[float, ...]
    samples: int
    skipped: int
    clean: float
    corrupted: float


def yes_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The ids with which an answer "Yes" can begin."""
    found = [tokenizer.encode(text, add_special_tokens=False) for text in _YES]
    return tuple(dict.fromkeys(ids[0] for ids in found if ids))


def causal_tracing(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Mapping[str, Any]],
    *,
    components: Sequence[str] = ("attention", "mlp"),
    tokens: TokenClass = "last",
    noise: float = 3.0,
    min_drop: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RecoveryRates:
    """Recovery rates of a model, over questions whose right answer is "Yes".

    Args:
        model: an unguarded vision-language model.
        processor: its processor, for the ids of "Yes".
        samples: inputs of the model's forward, batch 1, each with floating-point pixel inputs.
        components: out of `COMPONENTS`; others are reported as 0.
        tokens: where the clean output is put back.
        noise: standard deviation of the noise in normalised pixels.
        min_drop: samples whose probability falls by less are left out.
        seed: of the noise.
        progress: called with (finished, all) samples.

    Costs 2 + components x layers forward passes for each sample.

    Raises:
        ValueError: no sample, a sample without an image, an unknown component, or no sample that the noise changes.
    """
    inner = unwrap(model)
    architecture = describe_architecture(inner)
    unknown = set(components) - set(COMPONENTS)
    if unknown or not samples:
        raise ValueError(f"causal tracing needs samples and components out of {', '.join(COMPONENTS)}; {unknown or ''}")
    modules = list(attending_parts(architecture, "causal tracing"))
    modules += [LayerPart("residual", entry.index, entry.layer) for entry in architecture.layers]
    modules = [item for item in modules if _component(item) in components]
    tokenizer = getattr(processor, "tokenizer", processor)
    run = partial(_probability, inner, torch.tensor(yes_tokens(tokenizer)))
    generator = torch.Generator().manual_seed(seed)
    totals = torch.zeros(len(modules), dtype=torch.float64)
    kept: list[tuple[float, float]] = []
    for done, sample in enumerate(samples, 1):
        noised = _with_noise(sample, noise, generator)
        outputs: dict[int, Tensor] = {}
        clean = run(sample, [(item, partial(_keep, outputs, number)) for number, item in enumerate(modules)])
        corrupted = run(noised, [])
        if clean - corrupted >= min_drop:
            place = _places(sample["input_ids"][0], architecture.visual_token_ids, tokens)
            for number, item in enumerate(modules):
                patched = run(noised, [(item, partial(_put_back, outputs[number], place))])
                totals[number] += (patched - corrupted) / (clean - corrupted)
            kept.append((clean, corrupted))
        if progress is not None:
            progress(done, len(samples))
    if not kept:
        raise ValueError(
            f"the noise lowered the probability of 'Yes' by {min_drop:g} in none of {len(samples)} samples: "
            "give questions that the model answers with yes because of the image, or raise noise"
        )
    rates = {kind: [0.0] * architecture.depth for kind in COMPONENTS}
    for item, total in zip(modules, totals.tolist()):
        rates[_component(item)][item.layer] = total / len(kept)
    means = torch.tensor(kept).mean(0).tolist()
    return RecoveryRates(
        **{kind: tuple(values) for kind, values in rates.items()},
        samples=len(kept),
        skipped=len(samples) - len(kept),
        clean=means[0],
        corrupted=means[1],
    )


def calibrate_iri(
    model: nn.Module, processor: Any, samples: Sequence[Mapping[str, Any]], **options: Any
) -> dict[str, Fact]:
    """The profile facts `iri_attention_recovery` and `iri_mlp_recovery`; see `causal_tracing` for the arguments."""
    rates = causal_tracing(model, processor, samples, **options)
    note = (
        f"causal tracing at the last token over {rates.samples} questions answered with yes ({rates.skipped} left "
        f"out), probability of Yes {rates.clean:.2f} with the image and {rates.corrupted:.2f} with noise"
    )
    return {
        f"iri_{kind}_recovery": Fact(
            value=[round(value, 4) for value in getattr(rates, kind)], source="calibrated", note=note
        )
        for kind in ("attention", "mlp")
    }


def _probability(
    model: nn.Module, yes: Tensor, inputs: Mapping[str, Any], edits: list[tuple[LayerPart, Callable]]
) -> float:
    """P("Yes") as the first answer token, with hooks on sub-layers."""

    def hook(edit: Callable, module: nn.Module, args: tuple, output: Any) -> Any:
        return replace_output(output, edit)

    with ExitStack() as stack, torch.no_grad():
        for item, edit in edits:
            stack.callback(item.module.register_forward_hook(partial(hook, edit)).remove)
        logits = model(**inputs, use_cache=False).logits[0, -1].float()
    return float(logits.softmax(-1)[yes.to(logits.device)].sum())


def _component(part: LayerPart) -> str:
    """The paper's word for a part: the residual stream behind a layer is its hidden state."""
    return "hidden" if part.part == "residual" else part.part


def _keep(outputs: dict[int, Tensor], number: int, output: Tensor) -> None:
    outputs[number] = output


def _put_back(clean: Tensor, place: Tensor, output: Tensor) -> Tensor:
    """Rows `place` of `output` as they were with the clean image."""
    patched, width = output.clone(memory_format=torch.contiguous_format), output.shape[-1]
    patched.view(-1, width)[place] = clean.reshape(-1, width)[place]
    return patched


def _places(input_ids: Tensor, visual_token_ids: tuple[int, ...], tokens: TokenClass) -> Tensor:
    """Positions of a class of tokens in one prompt."""
    visual = visual_mask(input_ids, visual_token_ids)
    if not bool(visual.any()):
        raise ValueError("causal tracing needs a prompt with an image")
    if tokens == "last":
        return torch.tensor([len(input_ids) - 1], device=input_ids.device)
    behind = (visual.cumsum(0) == visual.sum()) & ~visual
    return (visual if tokens == "visual" else behind).nonzero().flatten()


def _with_noise(inputs: Mapping[str, Any], noise: float, generator: torch.Generator) -> dict[str, Any]:
    """The inputs with Gaussian noise on every pixel of every image."""
    names = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()]
    if not names:
        raise ValueError("causal tracing needs pixel inputs to put noise on; pass pixel_values")
    noised = dict(inputs)
    for name in names:
        value = inputs[name]
        drawn = torch.randn(value.shape, generator=generator)
        noised[name] = value + noise * drawn.to(device=value.device, dtype=value.dtype)
    return noised
