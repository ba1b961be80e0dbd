"""AvisC: attentional vision calibration (Don't Miss the Forest for the Trees, Findings of ACL 2025, arXiv 2405.17820).

A few patches draw most of a model's attention, whatever the question is, and say little about it ("blind tokens").
AvisC lets a second branch see only these, all other patches blanked out, and moves away from its logits.

Stations: attention (looked at, not edited), hidden (in the branch) and logits. With A_l the attention of the row that
predicts the first token, mean over heads, and V the visual tokens,

  share_l = sum over j in V of A_lj, divided by its sum over all layers
  layers  = the fewest, of the largest shares, whose shares add up to `layer_share`
  a_j     = mean over these layers of A_lj;   blind are j with a_j >= mean + threshold * std over V
  branch  : the embeddings of the visual tokens that are not blind are 0
  l'      = (1 + strength) l - strength l_branch,   kept where l >= max l + ln(plausibility)

Where the values come from: layer_share 0.5, threshold 1, strength 1 and plausibility 0.1 are the released script's. The
attention is that of the bare model, in a pass over the prompt of its own, so that methods named beside it do not move
what is blind. Layers and blind tokens are found for each row of a batch. The deviation is that of a sample, as torch's.
Features that a family adds again in later layers (Qwen3-VL) are not blanked there.

Cost: the prompt is read three times before the first token; later tokens cost what a second branch costs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    Branch,
    ContrastCall,
    ContrastMethod,
    Finding,
    FindingsCall,
    ForwardCall,
    GuardTarget,
    HiddenEditCall,
    MarkedTokens,
    Part,
    option,
    plausibility_option,
    register,
)
from vlm_guard.methods.shared.prompt_pass import last_row_attention, record_last_row, whole_prompt_inputs


@register("avisc")
@dataclass(frozen=True, kw_only=True)
class AvisC(ContrastMethod):
    """Move away from the logits of a branch that sees only the patches which draw most attention."""

    title = "AvisC"
    paper = (
        "Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision Language Models, "
        "Findings of ACL 2025, arXiv 2405.17820"
    )
    stations = ("attention", "hidden", "logits")
    edited_branch = "negative"
    rows = "answer"
    hidden_rows = "all"
    whole_prompt = "all"
    steady = True
    compiles = False

    strength: float = option(
        1.0,
        help="how far to move away from the branch's logits",
        range=(0.0, 10.0),
        neutral=0.0,
        tried=(0.5, 2.5),
        paper="alpha = 1 in the released script",
    )
    plausibility: float = plausibility_option("beta = 0.1 in the released script")
    layer_share: float = option(
        0.5,
        help="share of all layers' attention on the picture that the chosen layers have together",
        range=(0.0, 1.0),
        paper="gamma = 0.5 in the released script",
    )
    threshold: float = option(
        1.0,
        help="a patch is blind from this many standard deviations above the mean on",
        range=(-10.0, 100.0),
        paper="lamb = 1 in the released script",
    )

    def prompt_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """None: only the last row's attention is looked at."""
        return ()

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """All layers with attention: their last row is looked at."""
        return tuple(entry.index for entry in target.architecture.layers)

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The same prompt; what differs is what its rows get of the picture."""
        return Branch(prompt=call.prompt.same(), images="same", active=call.prompt.has_image)

    def begin_forward(self, call: ForwardCall) -> None:
        """Look at the prompt's attention before the branch reads it."""
        shared, length = call.state.memory(self.name, -1), call.state.prompt_length
        if not self.contrasts() or getattr(shared, "length", None) == length:
            return
        inputs = whole_prompt_inputs(call, self.name)
        count = inputs["input_ids"].shape[1]
        real = call.state.real[:, :count].long().to(inputs["input_ids"].device)
        rows = last_row_attention(call, self.name, inputs | {"attention_mask": real}, self.edited_branch)
        visual = call.state.visual[:, :count]
        weights = torch.stack([rows[layer].to(visual.device)[:, :count] for layer in sorted(rows)])
        shared.length, shared.blanked = count, visual & ~self.blind(weights, visual)
        call.guard.findings(self.name).blanked = shared.blanked[0]

    def blind(self, weights: Tensor, visual: Tensor) -> Tensor:
        """[B, P] bool, the visual tokens that draw most attention.

        Args:
            weights: [L, B, P] attention of the last row by layer, mean over heads.
            visual: [B, P] bool.
        """
        seen = weights * visual
        share = seen.sum(-1)
        share = share / share.sum(0).clamp_min(1e-30)
        largest = share.sort(dim=0, descending=True, stable=True)
        # The layers before one of the chosen have not reached the share yet; the first is always chosen.
        before = largest.values.cumsum(0) - largest.values
        chosen = torch.zeros_like(share).scatter(0, largest.indices, (before < self.layer_share).float())
        chosen.scatter_(0, largest.indices[:1], 1.0)
        mean = (seen * chosen[..., None]).sum(0) / chosen.sum(0)[:, None]
        number = visual.sum(-1, keepdim=True)
        middle = mean.sum(-1, keepdim=True) / number.clamp_min(1)
        spread = ((mean - middle).square() * visual).sum(-1, keepdim=True) / (number - 1).clamp_min(1)
        return visual & (mean >= middle + self.threshold * spread.sqrt())

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """Nothing is edited; the pass that `begin_forward` makes is looked at."""
        record_last_row(call)
        return None

    def hidden_parts(self, target: GuardTarget, prepared: None) -> dict[Part, tuple[int, ...]]:
        """What enters the first layer: the embeddings."""
        return {"entering": (0,)} if self.contrasts() else {}

    def edit_hidden(self, call: HiddenEditCall) -> Tensor | None:
        """The branch's prompt with its other patches blanked out."""
        blanked = getattr(call.shared, "blanked", None)
        if blanked is None or call.rows is None:
            return None
        count = call.state.length - call.state.offset
        places = torch.nn.functional.pad(blanked, (0, max(0, call.state.length - blanked.shape[1])))
        current = places[:, call.state.offset : call.state.offset + count].to(call.hidden.device)
        taken = current.gather(1, call.rows.index.to(call.hidden.device))
        return call.hidden.masked_fill(taken[..., None], 0)

    def findings(self, call: FindingsCall) -> list[Finding]:
        """The patches that draw most attention, and are all that the branch saw."""
        blanked, visual = getattr(call.kept, "blanked", None), call.state.visual[0].cpu()
        if blanked is None:
            return []
        marked = blanked.cpu()[visual[: len(blanked)]]
        text = (
            f"The answer moved away from that of a branch which saw {int((~marked).sum())} of {len(marked)} patches, "
            "those that draw most attention. Crossed-out patches were blanked out for it."
        )
        return [
            MarkedTokens(title="AvisC: what its branch sees", text=text, marked=marked.numpy(), name="blanked patches")
        ]
