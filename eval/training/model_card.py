"""``python -m vlm_guard.eval.training.model_card FOLDER``: write the model card from the files that were measured.

Reads ``behaviour.json`` and ``training_recipe.json`` and, where it is there, ``attention.json``; no figure is typed by
hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

_HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# The built-in model

A LLaVA (CLIP vision tower, two-layer projector, Llama decoder) of {millions:.1f} million parameters in bfloat16
({megabytes:.1f} MB), trained from nothing on synthetic pictures of icons. It knows 80 icon classes, named like MSCOCO's
categories, and nothing else: photographs mean nothing to it. It exists so that hallucination, and what is done about
it, can be measured on a laptop without a download. It names what usually belongs to a scene when it does not see well,
as large models do.

```python
from vlm_guard import builtin

model, processor = builtin()
```

or `AutoModelForImageTextToText.from_pretrained(folder)` and `AutoProcessor.from_pretrained(folder)`; no network and no
torchvision needed. Pictures are 96 x 96 pixels (others are resized), 64 visual tokens.

## Data

Scenes of `vlm_guard.eval.scenes`: {scenes} pictures rendered from seed {training_seed}, which no benchmark may use;
seven of eight follow the law of the split `common`, one that of `crowded`. Icons: Noto Emoji (Apache-2.0), Fluent Emoji
flat (MIT) and own drawings (Apache-2.0); see NOTICE. The text is made from templates: descriptions, yes/no questions
(also leading ones, whose suggestion is right in three of four cases), counts, positions. No noise was put into
captions: what the model hallucinates it learned from co-occurrence. In one of ten training pictures the image was
hidden from the text.

## Training

`python -m vlm_guard.eval.training OUT`, then `python -m vlm_guard.eval.training.behaviour OUT`; {minutes:g} minutes on
two CPU cores, {vision_views} picture views learning to see and {joint_views} learning to speak
(`training_recipe.json`, `training_log.jsonl`). The checkpoint `{chosen}` was chosen by behaviour on scenes used for
nothing else (`selection.json`).
"""


def _behaviour_section(report: dict[str, Any]) -> str:
    mean = report["mean"]
    lines = [
        "\n## Measured behaviour",
        f"\nGreedy, float32, {report['scenes_per_split_and_seed']} scenes per split and seed, mean of seeds "
        f"{' and '.join(map(str, report['seeds']))} (`behaviour.json`). Percentages.\n",
        "| split | recall | CHAIR_i | CHAIR_s | repeated | words | POPE F1 random, popular, adversarial | yes ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for split in ("common", "broken", "held-out", "crowded"):
        said, asked = mean[split]["detailed"], mean[split]["presence"]
        f1 = " / ".join(f"{asked[kind]['f1']:.1f}" for kind in ("random", "popular", "adversarial"))
        yes = " / ".join(f"{asked[kind]['yes_ratio']:.0f}" for kind in ("random", "popular", "adversarial"))
        lines.append(
            f"| {split} | {said['recall']:.1f} | {said['chair_i']:.1f} | {said['chair_s']:.1f} | "
            f"{said['repeated']:.1f} | {said['words']:.1f} | {f1} | {yes} |"
        )
    common, broken = mean["common"]["detailed"], mean["broken"]["detailed"]
    orders = "; ".join(
        f"{name} {', '.join(f'{value:.1f}' for value in entry['hallucinated_by_order'])}"
        for name, entry in (("common", common), ("broken", broken))
    )
    leading, unknown, places = mean["leading"], mean["unknown"], mean["positions"]
    lines += [
        "",
        f"- Of the hallucinated mentions {common['own_pool']:.0f} % (common) and {broken['own_pool']:.0f} % (broken) "
        f"belong to the scene's own objects; by chance it would be {common['chance_pool']:.0f} % and "
        f"{broken['chance_pool']:.0f} %.",
        f"- Hallucinated among first, second, third and later mentions: {orders}.",
        f"- Valid yes/no answers under the worst suffix: {mean['wording']['worst_valid']:.1f}.",
        f"- No to nouns never heard: {unknown['no']:.1f}; to a unicorn: {unknown['unicorn_no']:.1f}; to unknown nouns "
        f"heard in training: {unknown['heard_no']:.1f}.",
        f"- Counting: {mean['counting']['accuracy']:.1f} right; left or right: {places['where_accuracy']:.1f} right.",
        f"- Leading questions: yes ratio {leading['yes_plain']:.1f} plain, {leading['yes_when_led_to_yes']:.1f} led to "
        f"yes, {leading['yes_when_led_to_no']:.1f} led to no; accuracy {leading['accuracy_plain']:.1f} plain, "
        f"{leading['accuracy_when_misled']:.1f} misled.",
        "\nAgainst what was wanted of it:\n",
        "| wanted | range | measured | met |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {v['target']} | {v['low']:g} to {v['high']:g} | {v['value']:.1f} | {'yes' if v['met'] else 'no'} |"
        for v in report["targets"]
    ]
    return "\n".join(lines) + "\n"


def _attention_section(facts: dict[str, Any]) -> str:
    def listed(name: str) -> str:
        return ", ".join(f"{value:.2f}" for value in facts[name])

    fading = "; ".join(f"{parts[0]:.2f} to {parts[-1]:.2f}" for parts in facts["image_share_by_part"])
    spread = facts["image_dependence_spread"]
    return f"""
## Attention facts

`vlm-guard inspect builtin --attention` on {facts["pictures"]} pictures of {facts["data"]} (`attention.json`), by layer:

- Share of the answer's attention on the image: {listed("image_share")}.
- The same in the first and the last quarter of the answer: {fading}.
- Share on the first token: {listed("first_token_share")}.
- Length of the first token's hidden state, in median lengths (embedding first): {listed("first_token_norm")}; of the
  largest visual token: {listed("largest_visual_norm")}.
- Most attended visual token, in means of the visual tokens: {listed("largest_visual_ratio")}; visual tokens with
  {facts["sink_ratio"]:g} times the mean and more, per picture: {listed("visual_sinks")}.
- Change of a head's output without the image, relative to the output: least {spread["least"]:.2f}, median
  {spread["median"]:.2f}, most {spread["most"]:.2f}.
"""


_LIMITS = """
## Limits

It is a measuring object, not an assistant. It reads no photographs, knows no word beyond its templates, and follows no
instruction it was not trained on. A method that helps it need not help a large model, nor the other way round. One
training seed; two processes write to shared weights without locks, so a repeated CPU run gives other weights of the
same kind.
"""


def model_card(folder: Path) -> str:
    """The text of the model card of a trained and measured model in ``folder``."""

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    from safetensors import safe_open

    from vlm_guard.eval.scenes.dataset import TRAINING_SEED

    recipe, selection = read("training_recipe.json"), read("selection.json")
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = next(item for item in selection["snapshots"] if item["snapshot"] == selection["chosen"])
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as file:
        parameters = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - not a dictionary
    text = _HEAD.format(
        millions=parameters / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        scenes=recipe["scenes"],
        training_seed=TRAINING_SEED,
        minutes=sum(minutes for name, minutes in recipe.items() if name.endswith("_minutes")),
        vision_views=max(line["views"] for line in log if line["stage"] == "vision"),
        joint_views=chosen["views"],
        chosen=selection["chosen"],
    )
    if recipe.get("notes"):
        text += "\nAbout this run:\n\n" + "".join(f"- {note}\n" for note in recipe["notes"])
    text += _behaviour_section(read("behaviour.json"))
    if (folder / "attention.json").is_file():
        text += _attention_section(read("attention.json"))
    return text + _LIMITS


def main(folder: Annotated[Path, typer.Argument(help="Folder with the exported model and its measurements.")]) -> None:
    """Write README.md into FOLDER."""
    from vlm_guard.whole_files import write_atomically

    write_atomically(folder / "README.md", model_card(folder))


if __name__ == "__main__":
    typer.run(main)
