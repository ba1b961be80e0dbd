"""IRI: intermediate representation injection (FCCT and IRI, AAAI 2026, arXiv 2511.05923).

Causal tracing shows which layers carry what the image says to the last token: restoring one clean output there, in a
run with a noised image, recovers part of the right answer. IRI adds these layers' outputs again, higher up. With a_l
the attention output and m_l the feed-forward output of layer l at the row that predicts the next token, R the recovery
rates of that token (`causal_tracing`), sources the k1 layers and targets the k2 layers of the largest R, for a and m
apart:

    a~_l = a_l + lambda_a sum over sources k < l of R_k a_k,   scaled back to the norm of a_l      (l a target)
    m~_l = m_l + lambda_m sum over sources k < l of R_k m_k,   scaled back to the norm of m_l

Station: the outputs that attention and feed-forward add to the residual stream, last prompt row and generated rows.

Where the values come from: k1 = 3, k2 = 10 and lambda_a = 0.26, lambda_m = 0.16 (LLaVA-1.5-7B; 0.20 and 0.10 for
Qwen-VL-Chat, 0.15 and 0.08 for LLaVA-NeXT) are the paper's. Its recovery rates are not published: they come from the
model's profile, measured by `vlm-guard calibrate`, or from the options. Chosen here, not in the paper: a source that is
a target too is remembered as it was before its own injection. Cost: a few additions per layer and token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.method import (
    Fact,
    GuardTarget,
    HiddenEditCall,
    MeasureCall,
    Method,
    Part,
    attending_parts,
    option,
    register,
)
from vlm_guard.methods.iri.causal_tracing import calibrate_iri


@dataclass(frozen=True, eq=False)
class Injection:
    """Of one kind of sub-layer: what is injected where, and how strongly."""

    strength: float
    sources: dict[int, float]
    targets: frozenset[int]

    @classmethod
    def of(cls, strength: float, rates: dict[int, float], sources: int, targets: int) -> "Injection":
        """From the recovery rates by layer."""
        order = sorted(rates, key=lambda layer: -rates[layer])
        return cls(strength, {layer: rates[layer] for layer in order[:sources]}, frozenset(order[:targets]))


@register("iri")
@dataclass(frozen=True, kw_only=True)
class IRI(Method):
    """Inject the outputs of the layers that carry the image's content into later layers."""

    title = "IRI"
    paper = (
        "Causal Tracing of Object Representations in Large Vision Language Models: Mechanistic Interpretability and "
        "Hallucination Mitigation, AAAI 2026, arXiv 2511.05923"
    )
    measurement = ("iri", "recovery rates by causal tracing, for IRI")
    stations = ("hidden",)
    needs = ("calibration",)
    cross_attention = "a learned gate stands between what such a layer's attention gives and what is added"

    attention_strength: float = option(
        0.26,
        help="how much of the sources' attention outputs is added",
        range=(0.0, 5.0),
        neutral=0.0,
        paper="lambda_a; 0.26 for LLaVA-1.5-7B",
    )
    mlp_strength: float = option(
        0.16,
        help="how much of the sources' feed-forward outputs is added",
        range=(0.0, 5.0),
        neutral=0.0,
        paper="lambda_m; 0.16 for LLaVA-1.5-7B",
    )
    sources: int = option(3, help="layers that are injected", range=(1, 200), paper="k1 = 3")
    targets: int = option(10, help="layers that are injected into", range=(1, 200), paper="k2 = 10")
    attention_rates: str = option(
        "",
        help="recovery rate of every layer's attention, comma separated; empty takes the model's profile",
        paper="RR of the last token; measured, not published",
    )
    mlp_rates: str = option(
        "",
        help="recovery rate of every layer's feed-forward network, comma separated; empty takes the model's profile",
        paper="RR of the last token; measured, not published",
    )

    @classmethod
    def measure(cls, call: MeasureCall) -> dict[str, Fact]:
        """The recovery rates of both kinds of sub-layer."""
        return calibrate_iri(call.model, call.processor, call.questions, progress=call.progress)

    def prepare(self, target: GuardTarget) -> dict[Part, Injection]:
        """Sources and targets of both kinds.

        Raises:
            ValueError: neither options nor profile know the recovery rates, or they are not one number per layer.
        """
        given: dict[Part, tuple[float, str]] = {
            "attention": (self.attention_strength, self.attention_rates),
            "mlp": (self.mlp_strength, self.mlp_rates),
        }
        return {
            kind: Injection.of(strength, self._rates(target, kind, text), self.sources, self.targets)
            for kind, (strength, text) in given.items()
        }

    def _rates(self, target: GuardTarget, kind: Part, text: str) -> dict[int, float]:
        depth, profile = target.architecture.depth, target.profile
        try:
            rates = [float(part) for part in text.split(",")] if text.strip() else None
        except ValueError:
            raise ValueError(f"iri: {kind}_rates must be numbers such as '0.1,0.4', given {text!r}") from None
        if rates is None and profile is not None:
            rates = profile.value(f"iri_{kind}_recovery")
        if rates is None:
            raise ValueError(
                f"iri needs the recovery rates of this {target.architecture.model_type} model, and no profile has "
                "them. Run 'vlm-guard calibrate MODEL' once, or pass attention_rates and mlp_rates"
            )
        if len(rates) != depth:
            raise ValueError(f"iri: {kind}_rates has {len(rates)} numbers, the decoder has {depth} layers")
        return {item.layer: rates[item.layer] for item in attending_parts(target.architecture, self.name)}

    def hidden_parts(self, target: GuardTarget, prepared: dict[Part, Injection]) -> dict[Part, list[int]]:
        """The parts that are sources or targets."""
        return {part: sorted({*plan.sources, *plan.targets}) for part, plan in prepared.items() if plan.strength > 0}

    def edit_hidden(self, call: HiddenEditCall) -> Tensor | None:
        """Remember a source, and inject those below into a target."""
        seen = vars(call.shared).setdefault(call.part, {})
        return inject(call.prepared[call.part], call.layer, call.hidden, seen)


def inject(plan: Injection, layer: int, rows: Tensor, seen: dict[int, Tensor]) -> Tensor | None:
    """The rows [B, R, hidden size] of `layer` with its sources added, at their old norm; None where none is below.

    `seen` holds the outputs of the sources of this pass; those of `layer` are put into it if it is one.
    """
    below = [source for source in plan.sources if source < layer] if layer in plan.targets else []
    if layer in plan.sources:
        seen[layer] = rows
    if not below:
        return None
    wide = rows.to(torch.float32)
    # A layer that shares an earlier one's keys may compute fewer rows than its sources: the last ones.
    count = rows.shape[1]
    total = sum(
        plan.sources[source] * seen[source][:, -count:].to(device=rows.device, dtype=torch.float32) for source in below
    )
    added = wide + plan.strength * total
    norm = added.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (added * (wide.norm(dim=-1, keepdim=True) / norm)).to(rows.dtype)
