"""``python -m vlm_guard.eval.training.smol.premises OUT.json``: does what the methods build on hold in a small model?

Each of the methods this project is named for presumes something of a model. Measured here, on fresh scenes, beside the
built-in model's numbers where it has them: attention sinks by layer (VAR), how much the output of each head depends on
the picture (VHR), whether the vision tower's class token looks at objects (PAINT), whether small things are seen better
when they are magnified (CARVE). Whether leading questions move answers (LQCD) is in ``behaviour.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

SEED = 801
SMALL_AREA = 160
"""Pixels, of 9,216: an object is small below."""

CROP = 44
"""Side in pixels of the part that is magnified to the whole picture."""


def sinks_by_layer(model: Any, processor: Any, count: int) -> dict[str, Any]:
    """Tokens that draw attention in each layer, out of prompts that ask for a description."""
    from functools import partial

    from vlm_guard.eval.data.calibration_prompts import calibration_prompts
    from vlm_guard.eval.training.behaviour_measures import DETAILED
    from vlm_guard.guard import wrap
    from vlm_guard.methods.var.sink_look import look_at_prompts
    from vlm_guard.methods.var.sink_search import find_rule

    prompts, _ = calibration_prompts(model, processor, f"scenes:common:{SEED}", count, DETAILED)
    looks = look_at_prompts(prompts, partial(wrap, model, processor))
    layers = {}
    for layer in sorted({look.layer for look in looks}):
        here = [look for look in looks if look.layer == layer]
        layers[layer] = {
            "most drawn by one token": round(max(float(look.drawn.max()) for look in here), 3),
            "sinks a prompt": round(sum(int(look.sinks.sum()) for look in here) / len(here), 2),
            "visual sinks a prompt": round(sum(int((look.sinks & look.visual).sum()) for look in here) / len(here), 2),
            "most drawn by a visual token": round(max(float(look.drawn[look.visual].max()) for look in here), 3),
        }
    rule = find_rule(looks)
    return {"prompts": count, "layers": layers, "rule": None if rule is None else vars(rule)}


def class_token_attention(model: Any, count: int) -> dict[str, Any]:
    """Mean attention of the class token on a patch that shows an object, and on one that does not, by tower layer."""
    import numpy as np
    import torch

    from vlm_guard.eval.scenes.render import render
    from vlm_guard.eval.training.model import normalise

    scenes = [render("common", SEED, index) for index in range(count)]
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    pixels = normalise(torch.from_numpy(np.stack([scene.pixels for scene in scenes]))).to(model.dtype)
    with torch.no_grad():
        maps = tower(pixel_values=pixels, output_attentions=True).attentions
    shows = torch.from_numpy(np.stack([scene.patches.reshape(-1) > 0 for scene in scenes]))
    found = {}
    for layer, attention in enumerate(maps):
        row = attention[:, :, 0, 1:].float().mean(1)
        on, off = float(row[shows].mean()), float(row[~shows].mean())
        found[layer] = {"on an object": round(on, 4), "elsewhere": round(off, 4), "ratio": round(on / off, 2)}
    return {"scenes": count, "layers": found}


def magnified(model: Any, tokenizer: Any, count: int) -> dict[str, Any]:
    """Percentage of yes to "Is there ...?" about small objects at full view and magnified, and about absent ones."""
    import numpy as np
    from PIL import Image

    from vlm_guard.eval.scenes.categories import NAMES, with_article
    from vlm_guard.eval.scenes.draws import Draws
    from vlm_guard.eval.scenes.render import SIZE, render
    from vlm_guard.eval.training.answers import SceneReader
    from vlm_guard.eval.training.presence import read_yes_no

    pixels: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    questions: list[list[str]] = []
    draws, index = Draws(SEED), 0
    while len(pixels) < count:
        scene = render("common", SEED, index)
        index += 1
        small = [item for item in scene.objects if item.area < SMALL_AREA]
        if not small:
            continue
        item = draws.choice(small)
        x, y, width, height = item.box
        left, top = (min(max(0, at - CROP // 2), SIZE - CROP) for at in (x + width // 2, y + height // 2))
        part = Image.fromarray(scene.pixels[top : top + CROP, left : left + CROP]).resize((SIZE, SIZE))
        pixels.append(scene.pixels)
        parts.append(np.asarray(part))
        absent = draws.choice([category for category in range(len(NAMES)) if category not in scene.present])
        questions.append([f"Is there {with_article(NAMES[which])} in the image?" for which in (item.category, absent)])
    out: dict[str, Any] = {"objects": count, "area below": SMALL_AREA, "magnified": round(SIZE / CROP, 2)}
    for name, shown in (("full view", pixels), ("magnified part", parts)):
        reader = SceneReader(model, tokenizer, np.stack(shown))
        for kind, place in (("present", 0), ("absent", 1)):
            answers = reader.ask(range(count), [pair[place] for pair in questions], longest=4)
            yes = sum(read_yes_no(answer) is True for answer in answers)
            out[f"yes, {kind}, {name}"] = round(100 * yes / count, 1)
    return out


def main(
    out: Annotated[Path, typer.Argument(help="JSON file to write.")],
    count: Annotated[int, typer.Option(help="Scenes for each measurement.", min=1)] = 200,
    prompts: Annotated[int, typer.Option(help="Prompts for sinks and heads.", min=1)] = 16,
    models: Annotated[str, typer.Option(help="Names of models, comma separated.")] = "smol,builtin",
) -> None:
    """Measure the premises of the methods in models that read scenes."""
    import torch
    from PIL import Image

    from vlm_guard.builtin_model import builtin
    from vlm_guard.environment import library_versions, processor_name
    from vlm_guard.eval.attention.facts import attention_facts
    from vlm_guard.eval.scenes.render import render
    from vlm_guard.whole_files import write_atomically

    torch.set_num_threads(1)
    pictures = [Image.fromarray(render("common", SEED, index).pixels) for index in range(prompts)]
    found: dict[str, Any] = {"seed": SEED, "machine": {"processor": processor_name(), "versions": library_versions()}}
    for name in models.split(","):
        model, processor = builtin(name)
        found[name] = {
            "sinks": sinks_by_layer(model, processor, prompts),
            "attention": attention_facts(model, processor, pictures),
            "class token": class_token_attention(model, count),
            "small objects": magnified(model, getattr(processor, "tokenizer", processor), count),
        }
    write_atomically(out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
