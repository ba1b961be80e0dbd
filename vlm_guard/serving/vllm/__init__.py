"""Guards inside vLLM: a plug-in that edits attention and contrasts logits there, chosen by each request.

    from vllm import LLM, SamplingParams
    from vlm_guard.serving.vllm import engine_options

    llm = LLM("MODEL", **engine_options("pai;m3id;strict=pai:gain=0.5"))
    llm.generate(prompts, SamplingParams(extra_args={"vlm_guard": "strict"}))

`ground` scores what answers mention. `vlm-guard serve MODEL --methods ...` starts vLLM's OpenAI server the same way; a
request then names its method in `vllm_xargs`. See docs/serving.md.

May import: guard and what guard may; vLLM only in the files that vLLM itself loads.
"""

from typing import TYPE_CHECKING, Any

from vlm_guard.serving.vllm.start.engine import engine_options

if TYPE_CHECKING:
    from vlm_guard.serving.vllm.grounding.offline import ground

__all__ = ["engine_options", "ground"]


def __getattr__(name: str) -> Any:
    if name == "ground":  # with torch and transformers, which those who only declare methods need not load
        from vlm_guard.serving.vllm.grounding.offline import ground

        return ground
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
