"""What ``generate`` of the unguarded models can do: the ground that tests of guarded models stand on."""

import pytest
import torch

from zoo import FAMILIES, Prompt, assert_pristine, families
from zoo.prompts import SPECIAL_IDS, VOCABULARY

SAME_LOGITS = {"static cache", "chunked prefill", "prompt lookup", "assistant model"}  # as plain greedy decoding
TOLERANCE = 1e-3
ONE_ROW = {"prompt lookup", "assistant model"}
FEATURES = {
    "static cache": {"cache_implementation": "static"},
    "beam search": {"num_beams": 3},
    "return sequences": {"do_sample": True, "num_return_sequences": 2},
    "recorded outputs": {
        "output_attentions": True,
        "output_hidden_states": True,
        "output_scores": True,
        "return_dict_in_generate": True,
    },
    "chunked prefill": {"prefill_chunk_size": 8},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "assistant model": {},
}


def decode(zoo, inputs, **options):
    """Logits of four greedy steps, without the ids that are never generated."""
    record = {"return_dict_in_generate": True, "output_logits": True}
    steps = zoo.model.generate(**inputs, **(record | options), max_new_tokens=4).logits
    return torch.stack(steps)[..., len(SPECIAL_IDS) : VOCABULARY]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("family", families())
def test_feature_works_or_is_listed(family, feature, zoo_model):
    zoo = zoo_model(family)
    prompts = zoo.adapt([Prompt(content=0), Prompt(text_before=8, images=2, content=1)])
    inputs = zoo.make_inputs(prompts[:1] if feature in ONE_ROW else prompts)
    options = FEATURES[feature] | ({"assistant_model": zoo.model} if feature == "assistant model" else {})
    if feature in FAMILIES[family].stock_failures:
        with pytest.raises((AttributeError, KeyError, RuntimeError, TypeError, ValueError)):
            decode(zoo, inputs, **options)
    else:
        values = decode(zoo, inputs, **options)
        if feature in SAME_LOGITS:
            same = bool((values - decode(zoo, inputs)).abs().max() < TOLERANCE)
            assert same != (feature in FAMILIES[family].stock_differences)
    assert_pristine(zoo.model)
