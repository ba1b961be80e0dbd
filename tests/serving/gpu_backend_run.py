"""Answers of an engine of vLLM whose attention is that for GPUs, computed by Triton's interpreter on the CPU.

vLLM switches its Triton kernels off where no GPU is found, and its CPU engine has a backend of its own. Here both are
told otherwise, before vLLM is imported. With WHOLE=1 vLLM's own kernel is interpreted, too. Run by test_gpu_backend.py:

RUNNER is 0 or 1, as vLLM's variable has it. OPTIONS are further arguments of `LLM`, as JSON. DRAWN are offers that are
asked twice more with a seed.

python gpu_backend_run.py RUNNER OFFERS OPTIONS DRAWN PICTURE...
                 prints {offer: [[token ids, [{token: log-probability}, ...]] of each picture]} in its last line;
                 under "mentions" those of a fixed answer about each picture
"""

import functools
import json
import os
import sys
from types import SimpleNamespace

os.environ |= {
    "TRITON_INTERPRET": "1",
    "VLLM_USE_V2_MODEL_RUNNER": sys.argv[1],
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}

import torch
from triton.backends import backends

backends["cpu"] = SimpleNamespace(driver=None, compiler=None)  # vLLM looks for it when it is imported
from vllm.triton_utils import HAS_TRITON

assert HAS_TRITON
del backends["cpu"]
torch.cuda.get_device_capability = lambda *device: (9, 0)

from PIL import Image
from served_answers import ASK, LEADING, SCORED, conversation, prompt_of
from vllm import LLM, SamplingParams
from vllm.v1.attention.backends import triton_attn

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.serving.vllm import engine_options, ground
from vlm_guard.serving.vllm.attention.observed_rows import ObservedRows
from vlm_guard.serving.vllm.attention.paged_attention import LayerCall
from vlm_guard.serving.vllm.backends.guarded_layers import GuardedSteps
from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.grounding.lens_rows import LensRows
from vlm_guard.serving.vllm.runners import contrasts
from vlm_guard.serving.vllm.start import devices

NEW_TOKENS = 5


def plain_attention(q, k, v, out, cu_seqlens_q, seqused_k, softmax_scale, block_table, **others):
    """What vLLM's own kernel computes, which takes minutes in the interpreter.

    Args:
        q: [T, H, D]. k, v: [blocks, block size, G, D]. out: [T, H, D].
        cu_seqlens_q: [R + 1] first row of each request. seqused_k: [R] its keys. block_table: [R, n].
        softmax_scale: factor of q.k. others: what has no effect here.
    """
    rows = cu_seqlens_q.tolist()
    for first, stop, length, blocks in zip(rows, rows[1:], seqused_k.tolist(), block_table.long()):
        key, value = (part[blocks].flatten(0, 1)[:length].transpose(0, 1)[None] for part in (k, v))
        seen = torch.arange(length) <= torch.arange(length - (stop - first), length)[:, None]
        query = q[first:stop].transpose(0, 1)[None]
        found = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=softmax_scale, enable_gqa=True
        )
        out[first:stop] = found[0].transpose(0, 1)


def on_no_device(function):
    """The function, in which a tensor that names no device has none, so that it cannot meet those of the model.

    On a GPU such a tensor would be on the CPU, and end the engine.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        with torch.device("meta"):
            return function(*args, **kwargs)

    return run


if os.environ.get("WHOLE") != "1":
    triton_attn.unified_attention = plain_attention
GuardedSteps.plan = on_no_device(GuardedSteps.plan)
LayerCall.edit = on_no_device(LayerCall.edit)
ObservedRows.show = on_no_device(ObservedRows.show)
LensRows.show = on_no_device(LensRows.show)
contrasts.mixed = on_no_device(contrasts.mixed)

if __name__ == "__main__":
    _, runner, methods, further, drawn, *paths = sys.argv
    devices.DEVICES["cpu"] = devices.Device(replaced="CPU_ATTN", backend=devices.DEVICES["cuda"].backend, chosen=False)
    llm = LLM(
        str(BUILTIN_DIR),
        dtype="float32",
        max_model_len=192,
        max_num_seqs=16,
        block_size=32,
        logprobs_mode="processed_logprobs",
        kv_cache_memory_bytes=64 << 20,
        **{"enforce_eager": True, **engine_options(methods, grounding="lens,self_check"), **json.loads(further)},
    )
    assert llm.llm_engine.vllm_config.use_v2_model_runner == (runner == "1")
    names = ["none", *Declaration.read(methods).offers]
    jobs = [(name, path, {"temperature": 0}) for name in names for path in paths]
    jobs += [(name, paths[0], {"temperature": 1, "seed": 7}) for name in filter(None, drawn.split(";"))] * 2
    prompts, params = [], []
    for name, path, sampling in jobs:
        text = prompt_of(LEADING if name == "lqcd" else ASK)
        prompts.append({"prompt": text, "multi_modal_data": {"image": Image.open(path).convert("RGB")}})
        params.append(SamplingParams(max_tokens=NEW_TOKENS, logprobs=5, extra_args={"vlm_guard": name}, **sampling))
    found: dict[str, list] = {}
    for (name, _, sampling), output in zip(jobs, llm.generate(prompts, params, use_tqdm=False)):
        answer = output.outputs[0]
        steps = [{token: kept.logprob for token, kept in step.items()} for step in answer.logprobs]
        found.setdefault(f"{name} drawn" if "seed" in sampling else name, []).append([list(answer.token_ids), steps])
    shown = [[Image.open(path).convert("RGB")] for path in paths]
    scored = ground(llm, [conversation(images, text) for images, text in zip(shown, SCORED)])
    found["mentions"] = [[mention.to_dict() for mention in answer.mentions] for answer in scored]
    print(json.dumps(found), flush=True)
