"""What scores of mentions cost inside vLLM:

    python -m vlm_guard.serving.vllm.grounding.benchmark OUT.json --images FOLDER

Pictures (such as `vlm-guard scenes` draws) are described by the plain model, and their captions scored, round after
round in one engine, and then in transformers. Every round has its own pictures, so nothing of it comes from an earlier
one. Run it on an otherwise idle machine.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlm_guard.builtin_model import builtin, shipped_folder
from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.settings import Grounding, Part
from vlm_guard.guard import wrap
from vlm_guard.kernels.benchmark.measure import ratio_quantiles
from vlm_guard.serving.vllm.benchmark import ASK, SETTINGS, circumstances, rounded
from vlm_guard.serving.vllm.grounding.offline import ground
from vlm_guard.serving.vllm.start.engine import engine_options
from vlm_guard.untrusted.picture_reader import read_picture
from vlm_guard.whole_files import write_atomically

PARTS: tuple[tuple[Part, ...], ...] = (("lens",), ("self_check",), ("lens", "self_check"))
_TOKENS = 64
_BLOCK = 32

Describe = Callable[[Sequence[Image.Image]], Any]
"""Captions of pictures, in the form in which they are scored."""
Score = Callable[[Any, Grounding], list[GroundedAnswer]]
"""Scores of what `Describe` gave."""


def inside_vllm(llm: Any) -> tuple[Describe, Score]:
    """Captions and scores of an engine that measures mentions."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=_TOKENS)

    def describe(pictures: Sequence[Image.Image]) -> Any:
        asked = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image_pil", "image_pil": picture}, {"type": "text", "text": ASK}],
                }
            ]
            for picture in pictures
        ]
        outputs = llm.chat(asked, params, use_tqdm=False)
        texts = [output.outputs[0].text for output in outputs]
        return [
            [*messages, {"role": "assistant", "content": text}] for messages, text in zip(asked, texts, strict=True)
        ]

    return describe, lambda conversations, settings: ground(llm, conversations, settings)


def in_transformers(model: Any, processor: Any) -> tuple[Describe, Score]:
    """The same of the model in transformers, all pictures in one batch."""
    from vlm_guard.grounding.answers import ground as ground_here

    guard = wrap(model, processor, "none")

    def describe(pictures: Sequence[Image.Image]) -> Any:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASK}]}
        text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        shown = [[picture] for picture in pictures]
        inputs = processor(images=shown, text=[text] * len(shown), return_tensors="pt", padding=True)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            return inputs, model.generate(**inputs, do_sample=False, max_new_tokens=_TOKENS)

    def score(found: Any, settings: Grounding) -> list[GroundedAnswer]:
        inputs, sequences = found
        return ground_here(guard, inputs, sequences, settings)

    return describe, score


def measure(describe: Describe, score: Score, pictures: Sequence[Image.Image], together: int) -> dict[str, Any]:
    """How long scores take, in times of their captions, round by round; the first round does not count.

    Args:
        describe: makes captions.
        score: scores them.
        pictures: a multiple of `together`, those of one round after another.
        together: so many captions are made, and then scored, at once.
    """
    seconds: dict[str, list[float]] = {"captions": [], **{"+".join(parts): [] for parts in PARTS}}
    things = 0
    for start in range(0, len(pictures), together):
        begin = time.perf_counter()
        captions = describe(pictures[start : start + together])
        took = {"captions": time.perf_counter() - begin}
        for parts in PARTS:
            begin = time.perf_counter()
            scored = score(captions, Grounding(parts=parts))
            took["+".join(parts)] = time.perf_counter() - begin
        if start:
            things += sum(len({mention.noun for mention in answer.mentions}) for answer in scored)
            for name, value in took.items():
                seconds[name].append(value)
    counted = len(pictures) - together
    return {
        "times_captions": {
            name: rounded(ratio_quantiles(own, seconds["captions"]))
            for name, own in seconds.items()
            if name != "captions"
        },
        "things_a_caption": round(things / counted, 2),
        "milliseconds_a_caption": {name: round(1000 * sum(own) / counted, 1) for name, own in seconds.items()},
    }


def main() -> None:
    """Measure a model that comes with the package, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="a folder with PNG files, at any depth")
    parser.add_argument("--model", default="builtin", help="builtin or smol")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--together", type=int, nargs="+", default=[1, 16], help="captions at once")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    needed = sum(count * (given.rounds + 1) for count in given.together)
    paths = sorted(given.images.rglob("*.png"))[:needed]
    if len(paths) < needed:
        parser.error(f"{given.images} has {len(paths)} PNG files, and {needed} are needed")
    pictures = [read_picture(path) for path in paths]
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    model, processor = builtin(given.model, dtype=getattr(torch, given.dtype))
    options = {"max_model_len": 512, "max_num_seqs": 32, "block_size": _BLOCK, "dtype": given.dtype}
    engine = engine_options("", grounding=",".join(PARTS[-1]))
    from vllm import LLM

    llm = LLM(str(shipped_folder(given.model)), **options | engine)
    found: dict[str, Any] = {"inside": {}, "transformers": {}}
    for place, both in (("inside", inside_vllm(llm)), ("transformers", in_transformers(model, processor))):
        start = 0
        for count in given.together:
            stop = start + count * (given.rounds + 1)
            found[place][str(count)] = measure(*both, pictures[start:stop], count)
            start = stop
    found = {
        **circumstances(given, options),
        **found,
        "command": shlex.join(["python", "-m", "vlm_guard.serving.vllm.grounding.benchmark", *sys.argv[1:]]),
    }
    write_atomically(given.out, json.dumps(found, indent=1) + "\n")
    for place in ("inside", "transformers"):
        for count, measured in found[place].items():
            times = "  ".join(f"{name} {ratio['median']:.2f}" for name, ratio in measured["times_captions"].items())
            print(f"{place:>12} {count:>3}: {times}  ({measured['things_a_caption']} things a caption)")


if __name__ == "__main__":
    main()
