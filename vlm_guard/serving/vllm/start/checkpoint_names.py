"""Names of weights: transformers 5 saves a LLaVA's CLIP tower without `vision_model`, vLLM 0.32 wants it there."""

import re

_TOWER = re.compile(r"^(?:model\.)?vision_tower\.(?=(?:embeddings|encoder|pre_layrnorm|post_layernorm)\.)")
_READ_AS = "vision_tower.vision_model."


def read_as(name: str) -> str:
    """The name by which vLLM's LLaVA knows a weight of a checkpoint."""
    return _TOWER.sub(_READ_AS, name)


def accept_new_names() -> None:
    """Let vLLM's LLaVA read checkpoints of both kinds; done before it loads its weights."""
    from vllm.model_executor.models.llava import LlavaForConditionalGeneration as Llava
    from vllm.model_executor.models.utils import WeightsMapper

    if _TOWER not in Llava.hf_to_vllm_mapper.orig_to_new_regex:
        Llava.hf_to_vllm_mapper = Llava.hf_to_vllm_mapper | WeightsMapper(orig_to_new_regex={_TOWER: _READ_AS})
