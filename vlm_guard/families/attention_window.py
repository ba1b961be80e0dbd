"""Whether a decoder layer's attention reaches back to every earlier token."""

from transformers import PreTrainedConfig

_UNLIMITED = ("full_attention", "attention")


def has_window(config: PreTrainedConfig, layer: int) -> bool:
    """Whether layer number `layer` sees only the latest tokens, or those of its chunk.

    Args:
        config: of the decoder (`config.get_text_config(decoder=True)` of the whole model).
        layer: index of the decoder layer.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and layer < len(kinds):
        return kinds[layer] not in _UNLIMITED
    limits = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return any(limit is not None for limit in limits)
