"""What each attention head does while a picture is described: rest on a sink, look at the picture, fetch a word?

Measures, by layer and query head, over the rows that predict an answer:

  sink rate     share of prompts on which one key gets more than `SINK_SHARE` of the head's attention on average (Gu et
                al., ICLR 2025, arXiv 2410.10781), with the picture and for the same answer without it. A head that
                rests in one case and not in the other is active-dormant (Guo et al., arXiv 2410.13835).
  value norm    length of that key's value, in times of the median of the row's keys: small where the head does nothing.
  image share   attention on visual tokens.
  retrieval     share of the nouns at which the lens reads, at the patch that the head looks at most, the very noun with
                at least `READ` probability; `chance` is the share of patches where it does.
  distance      from the semantic centre of the layer, see `contributions.py`.

A token becomes a sink where its hidden state grows: the first layer behind which it is `GROWN` times as long as the
median token's. Which tokens are sinks in which layer, and what makes them so: `sinks.py`, measured along with this.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlm_guard.eval.attention.contributions import head_distances, projected_heads
from vlm_guard.eval.attention.facts import PROMPT, blind_ids, decoder_with_pictures, extended
from vlm_guard.eval.attention.record import AttentionRecord, record_attention
from vlm_guard.eval.attention.sinks import Sink, sinks_of, summarised
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.families.architecture import Architecture
from vlm_guard.families.head_list import head_list
from vlm_guard.families.profiles import Fact
from vlm_guard.grounding import PromptLens, find_mentions
from vlm_guard.grounding.answer_text import token_spans
from vlm_guard.grounding.lens import VisualStates
from vlm_guard.grounding.readout import ModelReadout
from vlm_guard.guard import wrap
from vlm_guard.method.visual_tokens import visual_mask

SINK_SHARE = 0.3
READ = 0.1
GROWN = 5.0
ANSWER_TOKENS = 64
LISTS = ("dormant", "image", "retrieval", "distant")


def head_facts(model: nn.Module, processor: Any, images: Sequence[Image.Image], prompt: str = PROMPT) -> dict[str, Any]:
    """The measures above as JSON-able numbers, and the heads that stand out by each.

    Args:
        model: an unguarded model with visual tokens in its decoder.
        processor: its processor.
        images: pictures; each is described greedily, and its whole attention kept for one forward pass.
        prompt: what the model is asked.

    Raises:
        ValueError: no pictures, or a family that keeps the picture outside of its decoder.
    """
    lacking = "heads have no visual keys to be told apart by"
    architecture = decoder_with_pictures(model, images, "heads", lacking)
    collected: dict[str, list[Tensor]] = {}
    sinks: list[Sink] = []
    no_distance = _why_no_distance(architecture)
    for picture in images:
        measured, of_picture = _of_picture(model, processor, architecture, picture, prompt, not no_distance)
        sinks += of_picture
        for name, value in measured.items():
            collected.setdefault(name, []).append(value)
    means = {name: torch.stack(values).float().mean(0) for name, values in collected.items() if name != "retrieval"}
    found = torch.stack([value for value in collected["retrieval"]]).float()
    nouns = found[:, 0, 0, 1].sum()
    retrieval = found[..., 0].sum(0) / nouns.clamp_min(1)
    layers = [entry.index for entry in architecture.layers]
    stand_out = {
        "dormant": means["sink_rate"] >= 0.5,
        "image": _outstanding(means["image_share"]),
        "retrieval": _outstanding(retrieval) & (retrieval > means["chance"]),
    }
    if "distance" in means:
        # The centre is the layer's own, so heads stand out among those of their layer.
        stand_out["distant"] = torch.stack([_outstanding(layer) for layer in means["distance"]])
    return {
        "pictures": len(images),
        "nouns": int(nouns),
        "layers": layers,
        "sink_rate": _rounded(means["sink_rate"]),
        "sink_rate_without_picture": _rounded(means["sink_rate_without_picture"]),
        "value_norm_of_sinks": _rounded(means["value_norm"]),
        "image_share": _rounded(means["image_share"]),
        "retrieval": _rounded(retrieval),
        "retrieval_chance": round(float(means["chance"]), 4),
        "distance": _rounded(means["distance"]) if "distance" in means else None,
        "no_distance": no_distance,
        "longest_token_by_state": _rounded(means["longest"]),
        "becomes_sink_in_layer": _first_layer(means["longest"]),
        "lists": {name: head_list(dict(zip(layers, chosen))) for name, chosen in stand_out.items()},
        "sinks": summarised(architecture, sinks, len(images)),
    }


def head_list_facts(facts: Mapping[str, Any]) -> dict[str, Fact]:
    """What a profile keeps of `head_facts`: the lists, for `heads=retrieval`, `heads=dormant` and the like."""
    rules = {
        "dormant": f"one key gets more than {SINK_SHARE:g} of the attention on at least half of the prompts",
        "image": "their share of attention on visual tokens is more than a standard deviation above the mean",
        "retrieval": f"the patch they look at most reads as the coming noun (chance {facts['retrieval_chance']:.2f})",
        "distant": "what they add lies more than a standard deviation further from their layer's centre than the mean",
    }
    return {
        f"heads_{name}": Fact(
            value=facts["lists"][name],
            source="calibrated",
            note=f"{rules[name]}; over {facts['pictures']} pictures, {facts['nouns']} nouns",
        )
        for name in LISTS
        if name in facts["lists"]
    }


def _of_picture(
    model: nn.Module, processor: Any, architecture: Architecture, picture: Image.Image, prompt: str, distances: bool
) -> tuple[dict[str, Tensor], list[Sink]]:
    template, device = find_template(processor), next(model.parameters()).device
    inputs = dict(template.encode(processor, [picture.convert("RGB")], [prompt]).to(device))
    length = inputs["input_ids"].shape[1]
    generate: Any = model.generate
    answer = generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)[0, length:]
    whole = extended(inputs, answer)
    states = VisualStates.of(architecture)
    with states.recording(architecture, whole["input_ids"]), ExitStack() as stack:
        given = stack.enter_context(projected_heads(architecture)) if distances else {}
        seen = record_attention(model, whole)
    blind_prompt = {"input_ids": blind_ids(processor, prompt).to(device)}
    blind = record_attention(model, extended(blind_prompt, answer))
    visual = visual_mask(whole["input_ids"], architecture.visual_token_ids)[0]
    rows = torch.stack(seen.weights)[:, :, length - 1 : -1]
    mean, sink = rows.mean(2).max(-1)
    first = blind_prompt["input_ids"].shape[1] - 1
    rested = torch.stack(blind.weights)[:, :, first:-1].mean(2).amax(-1)
    retrieval, chance = _retrieval(model, processor, states, rows, visual, answer)
    longest = seen.norms[:, :length].amax(-1) / seen.norms.median(-1).values
    measured = {
        "sink_rate": (mean > SINK_SHARE).float().cpu(),
        "sink_rate_without_picture": (rested > SINK_SHARE).float().cpu(),
        "value_norm": _value_norms(seen, sink).cpu(),
        "image_share": rows[..., visual].sum(-1).mean(2).cpu(),
        "retrieval": retrieval.cpu(),
        "chance": chance.cpu(),
        "longest": longest.cpu(),
    }
    if distances:
        measured["distance"] = head_distances(architecture, given, slice(length - 1, -1)).cpu()
    return measured, sinks_of(model, architecture, whole, length, seen)


def _why_no_distance(architecture: Architecture) -> str | None:
    """Why the distance of this family's heads cannot be measured; None where it can."""
    try:
        with projected_heads(architecture):
            return None
    except ValueError as error:
        return str(error)


def _value_norms(record: AttentionRecord, sink: Tensor) -> Tensor:
    """[layers, H] length of each head's sink key's value, in times of the median key's."""
    norms = torch.stack(record.value_norms)
    return norms.gather(-1, sink[..., None])[..., 0] / norms.median(-1).values.clamp_min(1e-9)


def _retrieval(
    model: nn.Module, processor: Any, states: VisualStates, rows: Tensor, visual: Tensor, answer: Tensor
) -> tuple[Tensor, Tensor]:
    """[layers, H, 2] nouns that each head's patch reads as, and all nouns; [] the share of patches that do."""
    hits, total, chances = torch.zeros(rows.shape[:2]), 0, []
    with wrap(model, processor, "none") as guard:
        lens = PromptLens(states, ModelReadout.of(guard), 1, [set(answer.tolist())])
    text, spans = token_spans(processor.tokenizer, answer.tolist())
    looked = rows[..., visual].argmax(-1).cpu()
    for mention in find_mentions(text):
        step = next((index for index, (start, end) in enumerate(spans) if start <= mention.start < end), None)
        if step is None:
            continue
        reads = lens.patch_log_probs(0, [[int(answer[step])]]) >= math.log(READ)
        hits += reads[looked[:, :, step]].float()
        chances.append(float(reads.float().mean()))
        total += 1
    chance = torch.tensor(sum(chances) / len(chances) if chances else 0.0)
    return torch.stack((hits, torch.full_like(hits, float(total))), -1), chance


def _outstanding(values: Tensor) -> Tensor:
    """Which values are more than a standard deviation above the mean of all of them, bool of the same shape."""
    return values > values.mean() + values.std()


def _first_layer(longest: Tensor) -> int | None:
    """The layer whose output first has a token `GROWN` times as long as the median; None where no layer's has."""
    grown = (longest[1:] >= GROWN).nonzero().flatten().tolist()
    return grown[0] if grown else None


def _rounded(values: Tensor) -> Any:
    return (
        [[round(float(value), 4) for value in row] for row in values]
        if values.dim() == 2
        else [round(float(value), 4) for value in values]
    )
