"""Guards inside vLLM: a plug-in that edits attention and contrasts logits there, chosen by each request.

    from vllm import LLM, SamplingParams
    from vlm_guard.serving.vllm import engine_options

    llm = LLM("MODEL", **engine_options("pai;m3id;strict=pai:gain=0.5"))
    llm.generate(prompts, SamplingParams(extra_args={"vlm_guard": "strict"}))

`ground` scores what answers mention. `vlm-guard serve MODEL --methods ...` starts vLLM's OpenAI server the same way; a
request then names its method in `vllm_xargs`. See docs/serving.md.

May import: guard and what guard may; vLLM only in the files that vLLM itself loads.
"""

from vlm_guard.serving.vllm.grounding.offline import ground
from vlm_guard.serving.vllm.start.engine import engine_options

__all__ = ["engine_options", "ground"]
