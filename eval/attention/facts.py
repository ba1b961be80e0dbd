"""Where a vision-language model looks while it describes pictures, in numbers and plots.

The facts that methods rest on: how much attention the image gets by layer and as the text grows, how much the first
token gets, whether some hidden states are massive, whether a few visual tokens attract attention for no visible reason
(visual sinks), and how much each head's output depends on the image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlm_guard.eval.attention.record import AttentionRecord, record_attention
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.families.architecture import Architecture, describe_architecture, unwrap
from vlm_guard.method.visual_tokens import visual_mask
from vlm_guard.untrusted.picture_reader import read_picture

PROMPT = "Please describe this image in detail."
PARTS = 4
"""The answer is divided into this many parts of equal length to see how attention changes along it."""

SINK_RATIO = 5.0
"""A visual token is counted as a sink if it gets this many times the mean attention of the image's tokens."""


def blind_ids(processor: Any, prompt: str) -> Tensor:
    """The prompt without a picture, [1, P]."""
    tokenizer = getattr(processor, "tokenizer", processor)
    template = find_template(processor)
    if template.source == "chat template":
        message = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    else:
        text = template.text.replace("{image}", "").replace("{prompt}", prompt)
    special = not (tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token))
    return tokenizer(text, return_tensors="pt", add_special_tokens=special)["input_ids"]


def decoder_with_pictures(
    model: nn.Module, images: Sequence[Image.Image], measured: str, consequence: str
) -> Architecture:
    """What a model is made of, if its visual tokens stand in its decoder and there are pictures to measure them on.

    Args:
        model: as it was loaded.
        images: the pictures.
        measured: what is measured on them, for the message.
        consequence: what a model that reads pictures elsewhere lacks for that, for the message.

    Raises:
        ValueError: no pictures, or a family that keeps the picture outside of its decoder.
    """
    if not images:
        raise ValueError(f"{measured} are measured on pictures; none were given")
    architecture = describe_architecture(unwrap(model))
    if architecture.entry.cross_attention:
        raise ValueError(f"{architecture.model_type} reads pictures in cross-attention layers, so its {consequence}")
    return architecture


def extended(inputs: dict[str, Any], answer: Tensor) -> dict[str, Any]:
    """Prompt inputs with the answer's tokens [A] appended."""
    ids = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    kept = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **kept}


def _round(tensor: Tensor, digits: int = 4) -> Any:
    return json.loads(json.dumps(tensor.tolist()), parse_float=lambda text: round(float(text), digits))


def _picture_facts(record: AttentionRecord, visual: Tensor, first: int) -> dict[str, Tensor]:
    """Facts of one sequence; ``visual`` [L] marks image tokens, ``first`` is the first row that predicts the answer."""
    weights = torch.stack(record.weights)[:, :, first:-1]
    layers, rows = weights.shape[0], weights.shape[2]
    image = weights[..., visual].sum(-1)
    prompt_text = ~visual
    prompt_text[0] = False
    prompt_text[first + 1 :] = False
    per_token = weights[..., visual].mean((1, 2))
    relative = per_token / per_token.mean(-1, keepdim=True)
    norms = record.norms / record.norms.median(-1, keepdim=True).values
    bounds = [round(rows * part / PARTS) for part in range(PARTS + 1)]
    parts = [image[:, :, a:b].mean((1, 2)) for a, b in pairwise(bounds) if b > a]
    return {
        "image_share": image.mean((1, 2)),
        "image_share_by_head": image.mean(2),
        "image_share_by_part": torch.stack(parts, dim=1) if len(parts) == PARTS else image.new_zeros(layers, 0),
        "first_token_share": weights[..., 0].mean((1, 2)),
        "prompt_text_share": weights[..., prompt_text].sum(-1).mean((1, 2)),
        "answer_share": weights[..., first + 1 :].sum(-1).mean((1, 2)),
        "largest_visual_ratio": relative.amax(-1),
        "visual_sinks": (relative > SINK_RATIO).sum(-1).float(),
        "first_token_norm": norms[:, 0],
        "largest_visual_norm": norms[:, visual].amax(-1),
        "first_token_peak": record.peaks[:, 0] / record.peaks.median(-1).values,
    }


def _image_dependence(seen: AttentionRecord, blind: AttentionRecord, answer: int) -> Tensor:
    """[layers, heads]: length of the change of a head's output without the image, relative to the output."""
    with_image = torch.stack(seen.outputs)[:, -answer - 1 : -1]
    without = torch.stack(blind.outputs)[:, -answer - 1 : -1]
    return ((with_image - without).norm(dim=-1) / with_image.norm(dim=-1).clamp_min(1e-9)).mean(1)


def attention_facts(
    model: nn.Module, processor: Any, images: Sequence[Image.Image], prompt: str = PROMPT
) -> dict[str, Any]:
    """Measure a model on pictures: it describes each one greedily, then its attention over that text is read.

    Args:
        model: A model the guard accepts, not guarded at this moment.
        processor: Its processor.
        images: Pictures; one forward pass of the whole sequence each, with L x L attention weights kept.
        prompt: What the model is asked.

    Returns:
        JSON-able numbers, means over pictures; lists are by layer (hidden states: embedding first).

    Raises:
        ValueError: no pictures, or a model that cannot be looked at.
    """
    if not images:
        raise ValueError("attention is measured on pictures; none were given")
    architecture = describe_architecture(unwrap(model))
    template, device = find_template(processor), next(model.parameters()).device
    blind_prompt = {"input_ids": blind_ids(processor, prompt).to(device)}
    collected: dict[str, list[Tensor]] = {}
    for picture in images:
        inputs = dict(template.encode(processor, [picture.convert("RGB")], [prompt]).to(device))
        prompt_length = inputs["input_ids"].shape[1]
        generate: Any = model.generate
        generated = generate(**inputs, max_new_tokens=128, do_sample=False)
        answer = generated[0, prompt_length:]
        whole = extended(inputs, answer)
        seen = record_attention(model, whole)
        visual = visual_mask(whole["input_ids"], architecture.visual_token_ids)[0]
        facts = _picture_facts(seen, visual, prompt_length - 1)
        blind = record_attention(model, extended(blind_prompt, answer))
        facts["image_dependence_by_head"] = _image_dependence(seen, blind, len(answer))
        facts["answer_tokens"] = torch.tensor(float(len(answer)))
        for name, value in facts.items():
            collected.setdefault(name, []).append(value.cpu())
    means = {
        name: torch.stack([v for v in values if v.shape == values[0].shape]).mean(0)
        for name, values in collected.items()
    }
    dependence = means["image_dependence_by_head"].flatten()
    return {
        "model_type": architecture.model_type,
        "layers": architecture.depth,
        "heads": architecture.heads,
        "pictures": len(images),
        "prompt": prompt,
        "sink_ratio": SINK_RATIO,
        **{name: _round(value) for name, value in means.items()},
        "pictures_with_visual_sinks": _round((torch.stack(collected["visual_sinks"]) > 0).float().mean(0)),
        "image_dependence_spread": {
            "least": _round(dependence.min()),
            "median": _round(dependence.median()),
            "most": _round(dependence.max()),
        },
    }


def measure_attention(
    model: nn.Module, processor: Any, data: str, count: int, out: Path | None = None
) -> dict[str, Any]:
    """:func:`attention_facts` on the first pictures of a data set, with plots and the numbers written to ``out``.

    Args:
        model: The model.
        processor: Its processor.
        data: ``scenes:SPLIT[:SEED]`` or ``coco:FOLDER``.
        count: Number of pictures.
        out: Folder for ``attention.json`` and the plots; nothing is written if None.
    """
    from vlm_guard.eval.data.datasets import open_dataset

    pictures = []
    for path in list(open_dataset(data, count).images.values())[:count]:
        pictures.append(read_picture(path))
    facts = {"data": data, **attention_facts(model, processor, pictures)}
    if out is not None:
        from vlm_guard.eval.attention.plots import plot_attention

        out.mkdir(parents=True, exist_ok=True)
        (out / "attention.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        plot_attention(facts, out)
    return facts
