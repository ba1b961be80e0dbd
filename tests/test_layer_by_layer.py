"""A pass taken apart into its layers equals the decoder's own, in every family of the zoo."""

import pytest
import torch

from vlm_guard.families.architecture import describe_architecture
from vlm_guard.methods.vhr.layer_by_layer import LayerByLayer
from zoo import Prompt, assert_pristine, families

torch.set_num_threads(1)

# Every guard refuses git, and layers that share another layer's keys cannot be run apart.
FAMILIES = [name for name in families() if name not in {"git", "gemma4_shared"}]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers_run_one_by_one_give_what_the_decoder_gives(zoo_model, family):
    zoo = zoo_model(family)
    architecture = describe_architecture(zoo.model)
    layers = architecture.decoder_layers
    assert len(layers) == architecture.depth
    assert all(layers[entry.index] is entry.layer for entry in architecture.layers)
    given = zoo.make_inputs(zoo.adapt([Prompt()]))
    text = {"input_ids": torch.arange(150, 157)[None], "attention_mask": torch.ones(1, 7, dtype=torch.long)}
    if "token_type_ids" in given:
        text["token_type_ids"] = torch.zeros(1, 7, dtype=torch.long)
    found = {}

    def keep(index):
        return lambda module, args, output: found.update({index: output[0] if isinstance(output, tuple) else output})

    hooks = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    architecture.generator.forward(**text, use_cache=False)
    for hook in hooks:
        hook.remove()
    apart = LayerByLayer(architecture.generator, text, layers, max(found))
    for index in range(len(layers)):
        assert apart.advance(index) == (index in found), "a prompt without image skips cross-attention layers"
        if index in found:
            assert torch.equal(apart._hidden, found[index])
    assert not any("forward" in vars(layer) for layer in layers)
    assert_pristine(zoo.model)


@torch.no_grad()
def test_layers_that_share_keys_are_not_run_apart(zoo_model):
    zoo = zoo_model("gemma4_shared")
    architecture = describe_architecture(zoo.model)
    text = {"input_ids": torch.arange(150, 157)[None], "attention_mask": torch.ones(1, 7, dtype=torch.long)}
    with pytest.raises(ValueError, match="cannot be run apart"):
        LayerByLayer(architecture.generator, text, architecture.decoder_layers, architecture.depth - 1)
    assert_pristine(zoo.model)


def test_a_forward_that_somebody_wrapped_is_put_back(zoo_model):
    zoo = zoo_model("llava")
    layers = describe_architecture(zoo.model).decoder_layers
    own, calls = layers[0].forward, []

    def wrapped(*args, **kwargs):
        calls.append(args)
        return own(*args, **kwargs)

    layers[0].forward = wrapped
    try:
        apart = LayerByLayer(zoo.model, {"input_ids": torch.arange(150, 155)[None]}, layers, 1)
        assert layers[0].forward is wrapped and not calls
        assert apart.advance(1) and len(calls) == 1
    finally:
        del layers[0].forward
