"""One grammar for heads and one for layers, whatever reads them, and lists that read back."""

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.families.head_list import head_list, select_heads
from vlm_guard.families.layers import layer_ranges, select_layers
from vlm_guard.families.profiles import Fact, Profile
from vlm_guard.method.registry import method_class, method_names
from zoo import UNEQUAL_PROMPTS

WITH_HEADS = [name for name in method_names() if any(item.name == "heads" for item in method_class(name).options())]


def test_a_list_of_heads_reads_back():
    chosen = {7: torch.tensor([False, True, True, True]), 2: torch.tensor([True, False, True, False])}
    text = head_list(chosen)
    assert text == "2:0,2:2,7:1-3"
    found = select_heads(text, 8, 4)
    assert found.keys() == chosen.keys() and all(torch.equal(found[layer], chosen[layer]) for layer in chosen)
    assert select_layers(layer_ranges([1, 2, 3, 7]), 8) == (1, 2, 3, 7)


@pytest.mark.parametrize("everything", ["", "all", " all "])
def test_every_head(everything):
    assert select_heads(everything, 8, 4) is None


def test_the_other_notation_is_explained():
    with pytest.raises(ValueError, match=r"cannot read heads '12\.3,2:1'.*Did you mean '12:3,2:1'"):
        select_heads("12.3,2:1", 32, 32)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_every_method_with_heads_reads_the_same_text(zoo_model, name):
    assert {"act", "softpag", "zerotuning"} <= set(WITH_HEADS)
    zoo = zoo_model("llava")
    options = {"factor": 0.5} if name == "zerotuning" else {}
    options |= {"layers": "all"}
    for text, layers in (("2:0,2:2-3,0:1", {0, 2}), ("all", {0, 1, 2})):
        with wrap(zoo.model, None, name, heads=text, **options) as guard:
            assert guard.methods[0].layers == layers
    with pytest.raises(ValueError, match="cannot read heads"):
        wrap(zoo.model, None, name, heads="2.0", **options)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_lists_of_the_profile_have_names(zoo_model, name):
    zoo = zoo_model("llava")
    options = ({"factor": 0.5} if name == "zerotuning" else {}) | {"layers": "all"}
    facts = {
        "heads_retrieval": Fact(value="1:0-1,2:3", source="calibrated"),
        "heads_dormant": Fact(value="", source="calibrated"),
    }
    profile = Profile(name="mine", match={}, facts=facts)
    with wrap(zoo.model, None, name, heads="retrieval", profile=profile, **options) as guard:
        assert guard.methods[0].layers == {1, 2}
    with pytest.raises(ValueError, match=r"heads='dormant'.*has none.*inspect MODEL --heads --save"):
        wrap(zoo.model, None, name, heads="dormant", profile=profile, **options)
    with pytest.raises(ValueError, match=r"heads='image'.*no profile says which"):
        wrap(zoo.model, None, name, heads="image", profile=profile, **options)


def test_pai_raises_the_scores_of_the_chosen_heads_only(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(zoo.adapt(UNEQUAL_PROMPTS))
    shares = []
    for method, options in (("none", {}), ("pai", {"layers": "1", "guidance": 1.0, "gain": 0.9, "heads": "1:2"})):
        with torch.no_grad(), wrap(zoo.model, None, method, **options) as guard, guard.trace("1") as trace:
            guard.generate(**inputs, max_new_tokens=1, do_sample=False)
            shares.append(trace.visual_share(guard.state.visual)[0, 0])
    changed = (shares[1] - shares[0]).abs() > 1e-5
    assert changed[:, 2].all() and not changed[:, [0, 1, 3]].any()
