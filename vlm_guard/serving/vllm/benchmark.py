"""What guards cost inside vLLM: python -m vlm_guard.serving.vllm.benchmark OUT.json

The plain model and every method answer in turn, round after round in one engine, and then in transformers, so that a
machine that slows down slows all of them. Answers have a fixed length, and nothing comes from a cache of prompts. Run
it on an otherwise idle machine.
"""

import argparse
import json
import os
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vlm_guard.builtin_model import builtin, shipped_folder
from vlm_guard.guard import wrap
from vlm_guard.kernels.benchmark.measure import describe_machine, note_on_load, ratio_quantiles
from vlm_guard.serving.vllm.declaration import PLAIN, Declaration
from vlm_guard.serving.vllm.start.engine import engine_options
from vlm_guard.serving.vllm.versions import installed_version
from vlm_guard.whole_files import write_atomically

if TYPE_CHECKING:
    from vlm_guard.serving.vllm.declaration import Offer

METHODS = (
    "pai:gain=0.5,guidance=1;act;zerotuning;vaf;spin;hgai;vhr;m3id;pai;vcd;icd;ritual;softpag;lqcd;"
    "gift:strength=20,saliency_layer=1"
)
ASK = "Please describe this image in detail."
TOKENS = 40
PICTURES = 8
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

Answer = Callable[[str, int], None]
"""Answers so many prompts at once with an offer."""


def noise(size: int) -> list[Image.Image]:
    """Pictures of noise, each with a side of `size` pixels, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (PICTURES, size, size, 3), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(picture) for picture in pixels.numpy()]


def text_of(processor: Any) -> str:
    """The prompt, as the chat template writes it."""
    content = [{"type": "image"}, {"type": "text", "text": ASK}]
    message = {"role": "user", "content": content}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def inside_vllm(llm: Any, processor: Any, size: int) -> Answer:
    """Answers of an engine that offers the methods.

    Args:
        llm: a `vllm.LLM`.
        processor: the model's.
        size: of the pictures, in pixels.
    """
    from vllm import SamplingParams

    pictures, text = noise(size), text_of(processor)
    prompts = [{"prompt": text, "multi_modal_data": {"image": picture}} for picture in pictures]

    def answer(name: str, count: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args={"vlm_guard": name})
        llm.generate([prompts[index % PICTURES] for index in range(count)], params, use_tqdm=False)

    return answer


def in_transformers(model: Any, processor: Any, size: int, offers: "Mapping[str, Offer]") -> Answer:
    """Answers of the same model in transformers, in one batch; reading the pictures is part of it, as in vLLM."""
    pictures, text = noise(size), text_of(processor)

    def answer(name: str, count: int) -> None:
        shown = [[pictures[index % PICTURES]] for index in range(count)]
        guard = None if name == PLAIN else wrap(model, processor, offers[name].methods)
        inputs = processor(images=shown, text=[text] * count, return_tensors="pt", padding=True)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            model.generate(**inputs, do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS)
        if guard is not None:
            guard.remove()

    return answer


def measure(
    answer: Answer, names: Sequence[str], together: Sequence[int], rounds: int
) -> dict[str, dict[int, list[float]]]:
    """Seconds of every round, by offer and number of prompts at once; one round before does not count.

    Args:
        answer: what is measured.
        names: the offers in turn.
        together: how many prompts at once.
        rounds: how often.
    """
    seconds: dict[str, dict[int, list[float]]] = {name: {count: [] for count in together} for name in names}
    for turn in range(rounds + 1):
        for count in together:
            for name in names:
                begin = time.perf_counter()
                answer(name, count)
                if turn:
                    seconds[name][count].append(time.perf_counter() - begin)
    return seconds


def shares_of_plain(seconds: Mapping[str, Mapping[int, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """By offer and number of prompts at once, what is left of the plain model's throughput, round by round."""
    return {
        name: {str(count): rounded(ratio_quantiles(seconds[PLAIN][count], own)) for count, own in counts.items()}
        for name, counts in seconds.items()
        if name != PLAIN
    }


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """The values with three digits behind the point."""
    return {name: round(value, 3) for name, value in values.items()}


def circumstances(given: argparse.Namespace, engine: Mapping[str, Any]) -> dict[str, Any]:
    """What figures from inside vLLM depend on: machine, versions, model, the engine's arguments and rounds."""
    machine = describe_machine(torch.device("cpu"))
    machine["versions"]["vllm"] = installed_version()
    return {
        "machine": machine,
        "note": note_on_load(machine),
        "model": given.model,
        "engine": engine,
        "rounds": given.rounds,
    }


def _peak_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure a model that comes with the package, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="builtin", help="builtin or smol")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--methods", default=METHODS, help="as of vlm-guard serve")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 16], help="prompts at once")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    folder, offers = str(shipped_folder(given.model)), Declaration.read(given.methods).offers
    model, processor = builtin(given.model, dtype=getattr(torch, given.dtype))
    size = model.config.vision_config.image_size
    options = {"max_model_len": 512, "max_num_seqs": 32, "max_num_batched_tokens": 2048, "enable_prefix_caching": False}
    options |= {"dtype": given.dtype, "enforce_eager": True}
    engine = engine_options(given.methods)
    from vllm import LLM

    names = [PLAIN, *offers]
    answer = inside_vllm(LLM(folder, **options | engine), processor, size)
    measure(answer, [PLAIN], given.together, 1)
    plain_mib = _peak_mib()
    inside = measure(answer, names, given.together, given.rounds)
    guarded_mib = _peak_mib()
    most = max(given.together)
    outside = measure(in_transformers(model, processor, size, offers), names, [most], max(1, given.rounds // 2))
    found = {
        **circumstances(given, options),
        "new_tokens": TOKENS,
        "plain_tokens_per_second": {
            str(count): round(count * TOKENS / statistics.median(seconds)) for count, seconds in inside[PLAIN].items()
        },
        "share_of_plain": shares_of_plain(inside),
        "times_transformers": {
            name: round(statistics.median(outside[name][most]) / statistics.median(inside[name][most]), 2)
            for name in names
        },
        "peak_memory_mib": {"plain requests": plain_mib, "with guarded requests": guarded_mib},
        "command": shlex.join(["python", "-m", "vlm_guard.serving.vllm.benchmark", *sys.argv[1:]]),
    }
    write_atomically(given.out, json.dumps(found, indent=1) + "\n")
    for name, counts in found["share_of_plain"].items():
        shares = "  ".join(f"{count:>3}: {share['median']:.2f}" for count, share in counts.items())
        print(f"{name:>36}  {shares}  {found['times_transformers'][name]:.1f}x transformers at {most}")


if __name__ == "__main__":
    main()
