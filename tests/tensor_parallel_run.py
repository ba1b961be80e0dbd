"""Two processes share a tiny LLaVA by tensor parallelism (gloo, CPU); run by tests/test_loading.py.

    python tensor_parallel_run.py FOLDER

Writes FOLDER/differences.json: by case the largest difference of a guarded answer's logits to those of one process.
The processes are forked, so that everything is imported once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import method_cases
import torch
from torch import distributed
from transformers.distributed import DistributedConfig

from vlm_guard import wrap
from zoo import Prompt, build, tiny_processor

SIZE = 2
PROMPTS = [
    Prompt(text_before=3, images=1, text_after=4, content=0),
    Prompt(text_before=9, images=2, text_after=6, content=1),
]
CASES: dict[str, dict[str, Any]] = {name: method_cases.options(name) for name in method_cases.names()}
CASES["carve"] = {"layers": "1-2"}
# ONLY sends heads of its own through the output projection and ReVisiT takes rows of the output embeddings; each
# process has a part of these.
REFUSED = {name: CASES.pop(name) for name in ("only", "revisit")}
# Heads by their number in the whole model, some in each process.
CASES["act of chosen heads"] = method_cases.options("act") | {"heads": "0:0,1:3,2:1-2"}
CASES["zerotuning of chosen heads"] = {"factor": 0.3, "heads": "0:3,1:0,2:1-2"}
CASES["softpag of chosen heads"] = {"heads": "0:3,1:0,2:2"}


def answer(model: Any, processor: Any, inputs: dict[str, Any], case: str) -> torch.Tensor:
    """[steps, B, V] logits of a guarded answer, then the shares of attention on visual tokens, in one flat tensor."""
    method = case.split()[0]
    with wrap(model, processor, method, **CASES[case]) as guard, torch.no_grad():
        settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        if case != "none":
            return torch.stack(model.generate(**inputs, **settings).logits).flatten()
        with guard.trace() as trace:
            logits = torch.stack(model.generate(**inputs, **settings).logits)
        return torch.cat((logits.flatten(), trace.visual_share(guard.state.visual).flatten()))


def refusal(model: Any, processor: Any, method: str, options: dict[str, Any]) -> str:
    """Why a method does not act on a shared model; empty if it does."""
    try:
        wrap(model, processor, method, **options).remove()
    except ValueError as error:
        return str(error)
    return ""


def share(rank: int, folder: Path, zoo: Any, inputs: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    """What one of the processes does."""
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=SIZE)
    plan = DistributedConfig(tp_size=SIZE, tp_plan="auto")
    model = type(zoo.model).from_pretrained(folder, distributed_config=plan).eval()
    model.generation_config = zoo.model.generation_config
    heads = []
    layer = model.model.language_model.layers[0].self_attn
    layer.o_proj.register_forward_pre_hook(lambda module, args: heads.append(args[0].shape[-1] // layer.head_dim))
    processor, found = tiny_processor("llava"), {}
    for case, logits in expected.items():
        found[case] = float((answer(model, processor, inputs, case) - logits).abs().max())
    if rank == SIZE - 1:
        refused = {case: refusal(model, processor, case, options) for case, options in REFUSED.items()}
        report = {"heads": heads[0], "differences": found, "refused": refused}
        (folder / "differences.json").write_text(json.dumps(report), encoding="utf-8")


def main() -> None:
    """Answer in one process, then in two."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    os.environ.update(WORLD_SIZE=str(SIZE), MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    zoo = build("llava")
    zoo.model.save_pretrained(folder)
    inputs = zoo.make_inputs(PROMPTS)
    expected = {case: answer(zoo.model, tiny_processor("llava"), inputs, case) for case in CASES}
    children = []
    for rank in range(SIZE):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            try:
                share(rank, folder, zoo, inputs, expected)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(1)


if __name__ == "__main__":
    main()
