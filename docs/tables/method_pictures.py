"""The pictures of the pages about methods: what each method edits, measured on the built-in model.

`python docs/tables/method_pictures.py` draws them all anew into docs/images/methods/. Everything in them comes from one
scene and one forward pass or first token per method at its default options, and from what the methods themselves say
they found (`Method.findings`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from which_method import group_of

from house import ROOT
from vlm_guard import builtin, wrap
from vlm_guard.eval.data.calibration_prompts import calibration_prompts
from vlm_guard.eval.data.datasets import open_dataset
from vlm_guard.method import Finding, FindingsCall, MarkedTokens, PictureMap, ReplacedPicture
from vlm_guard.method.registry import method_names

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FOLDER = ROOT / "docs" / "images" / "methods"
SCENES, REQUEST = "scenes:common:11", "Please describe this image in detail."
# A method that does nothing on a model without sinks, one that changes what is asked, and searches have no picture.
WITHOUT = {"none", "lqcd", "icd", "opera"}
PLAIN, GUARDED = "#8a8f98", "#1f6feb"


class Scene:
    """The built-in model, one picture, and a prompt that asks for its description."""

    def __init__(self) -> None:
        self.model, self.processor = builtin()
        descriptions, _ = calibration_prompts(self.model, self.processor, SCENES, 1, REQUEST)
        self.inputs = dict(descriptions[0])
        self.picture = Image.open(next(iter(open_dataset(SCENES, 1).images.values()))).convert("RGB")

    def generate(self, **settings: Any) -> Any:
        """The answer of the model as it is now."""
        with torch.no_grad():
            return self.model.generate(**self.inputs, do_sample=False, **settings)

    def attention_shares(self, method: str) -> list[float]:
        """By layer, the share of the first token's attention that lies on the picture, in percent."""
        with wrap(self.model, self.processor, method) as guard, guard.trace() as trace:
            self.generate(max_new_tokens=1)
            visual = guard.state.visual[0]
        # The last of each layer: a method may have read the prompt ahead.
        rows = [trace.weights[layer][-1][0].mean(0) for layer in trace.layers]
        return [100 * float(row[: len(visual)][visual].sum()) for row in rows]

    def first_logits(self, method: str) -> torch.Tensor:
        """[T, V] logits of the plain answer's tokens: the answer is the same for all, so that they can be compared."""
        answer = self.answer
        ids = torch.cat((self.inputs["input_ids"], answer[None]), 1)
        mask, labels = (
            torch.ones_like(ids),
            torch.cat((torch.full_like(self.inputs["input_ids"], -100), answer[None]), 1),
        )
        whole = {**self.inputs, "input_ids": ids, "attention_mask": mask, "labels": labels}
        with wrap(self.model, self.processor, method), torch.no_grad():
            return self.model(**whole).logits[0, self.inputs["input_ids"].shape[1] - 1 : -1]

    @property
    def answer(self) -> torch.Tensor:
        """[T] the plain answer's tokens."""
        return self.generate(max_new_tokens=24)[0, self.inputs["input_ids"].shape[1] :]

    def states(self, method: str) -> torch.Tensor:
        """[L, D] residual stream behind every layer at the last prompt position."""
        with wrap(self.model, self.processor, method):
            found = self.generate(max_new_tokens=1, output_hidden_states=True, return_dict_in_generate=True)
        return torch.stack([layer[0, -1] for layer in found.hidden_states[0][1:]])

    def findings(self, method: str) -> list[Finding]:
        """What a method says it found."""
        with wrap(self.model, self.processor, method) as guard:
            self.generate(max_new_tokens=24)
            bound = guard.methods[0]
            call = FindingsCall(state=guard.state, kept=guard.findings(method), layers=tuple(sorted(bound.layers)))
            return list(bound.method.findings(call))


def members(group: str) -> list[str]:
    """The methods of a group that have a picture."""
    return [name for name in method_names() if name not in WITHOUT and group_of(name) == group]


def draw_attention(scene: Scene) -> None:
    """Share of attention on the picture by layer, plain and guarded."""
    plain = scene.attention_shares("none")
    layers = np.arange(len(plain))

    def panel(axes: Any, name: str) -> None:
        axes.bar(layers - 0.2, plain, 0.4, color=PLAIN, label="plain")
        axes.bar(layers + 0.2, scene.attention_shares(name), 0.4, color=GUARDED, label="guarded")
        axes.set_xticks(layers)

    save("attention", members("attention"), panel, "layer", "attention on the picture, %")


def draw_hidden(scene: Scene) -> None:
    """How far the residual stream is turned, by layer."""
    plain = scene.states("none")

    def panel(axes: Any, name: str) -> None:
        cosine = torch.nn.functional.cosine_similarity(scene.states(name), plain, dim=-1)
        degrees = torch.rad2deg(cosine.clamp(-1, 1).arccos()).numpy()
        axes.bar(np.arange(len(plain)), degrees, color=GUARDED)
        axes.set_xticks(np.arange(len(plain)))
        # A method that hardly turns anything would look like an empty panel.
        axes.set_title(f"at most {degrees.max():.2g}°", loc="right", fontsize=7)

    save("hidden-states", members("hidden states"), panel, "layer", "turned by, degrees")


def draw_logits(scene: Scene, group: str, file: str) -> None:
    """Probability of every token of the plain answer, plain and guarded."""
    chosen = scene.answer
    plain = scene.first_logits("none").softmax(-1).gather(1, chosen[:, None])[:, 0]

    def panel(axes: Any, name: str) -> None:
        found = scene.first_logits(name).softmax(-1).gather(1, chosen[:, None])[:, 0]
        axes.step(np.arange(len(chosen)), 100 * plain, color=PLAIN, where="mid", label="plain")
        axes.step(np.arange(len(chosen)), 100 * found, color=GUARDED, where="mid", label="guarded")
        axes.set_ylim(0, 105)

    save(file, members(group), panel, "token of the plain answer", "its probability, %")


def draw_patches(scene: Scene) -> None:
    """The patches that methods say they singled out, crossed out on the picture."""
    found = {name: scene.findings(name) for name in method_names() if name not in {"none", *WITHOUT}}
    marked = {name: item for name, items in found.items() for item in items if isinstance(item, MarkedTokens)}

    def panel(axes: Any, name: str) -> None:
        side = round(len(marked[name].marked) ** 0.5)
        axes.imshow(scene.picture.resize((side * 16, side * 16)))
        for place in np.flatnonzero(marked[name].marked):
            row, column = divmod(int(place), side)
            corners = np.array([[2, 14], [2, 14]]) + np.array([[column * 16], [row * 16]])
            axes.plot(corners[0], corners[1], color="#d1242f", lw=1)
            axes.plot(corners[0][::-1], corners[1], color="#d1242f", lw=1)
        axes.set_axis_off()

    save("patches", list(marked), panel, "", "")


def draw_picture(scene: Scene) -> None:
    """What the methods of the picture find in it, as heat over its grey values, and what one shows instead."""
    panels: dict[str, Finding | None] = {"the picture": None}
    for name in members("the picture"):
        for item in scene.findings(name):
            panels[name if isinstance(item, PictureMap) else f"{name}: shown instead"] = item

    def panel(axes: Any, name: str) -> None:
        item = panels[name]
        shown = item.picture if isinstance(item, ReplacedPicture) else scene.picture
        axes.imshow(shown.convert("L") if isinstance(item, PictureMap) else shown, cmap="gray")
        if isinstance(item, PictureMap):
            width, height = shown.size
            axes.imshow(item.values, cmap="inferno", alpha=0.6, extent=(0, width, height, 0))
        axes.set_axis_off()

    save("picture", list(panels), panel, "", "")


def save(file: str, names: Sequence[str], panel: Callable[[Any, str], None], below: str, beside: str) -> Path:
    """One picture with a panel per method."""
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.1 * rows), squeeze=False, sharey=bool(beside))
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.set_axis_off()
            continue
        panel(axis, names[place])
        axis.set_title(names[place], fontsize=10)
        axis.tick_params(labelsize=7)
        if axis.get_legend_handles_labels()[0] and not place:
            axis.legend(fontsize=7)
    figure.supxlabel(below, fontsize=9)
    figure.supylabel(beside, fontsize=9)
    figure.tight_layout()
    path = FOLDER / f"{file}.png"
    # Without the date and the version, so that the same picture is the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def main() -> None:
    """Draw them all."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    scene = Scene()
    draw_attention(scene)
    draw_hidden(scene)
    draw_logits(scene, "contrast", "contrast")
    draw_logits(scene, "read-outs", "read-outs")
    draw_patches(scene)
    draw_picture(scene)


if __name__ == "__main__":
    main()
