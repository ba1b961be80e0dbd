"""docs/new-method.md runs as it is written, and its methods hold what every method holds."""

import re
from pathlib import Path

import pytest
import torch
from invariants import check_generating

from vlm_guard.method import registry
from vlm_guard.method.hooks import hooks_of
from vlm_guard.method.registry import method_class, method_names
from zoo import UNEQUAL_PROMPTS, assert_pristine

torch.set_num_threads(1)
GUIDE = Path(__file__).parents[1] / "docs" / "new-method.md"
LONGEST_METHOD = 32
EXAMPLES = {"glance": "attention", "blink": "logits", "lean": "hidden"}
FAMILIES = ["llava", "gemma3", "qwen2_5_vl", "llava_gpt_oss", "internvl"]


@pytest.fixture
def guide():
    """The names that the page defines; what it registers is forgotten afterwards."""
    known = dict(registry._REGISTERED)
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert all(len([line for line in block.splitlines() if line.strip()]) <= LONGEST_METHOD for block in code)
    names = {"__name__": "guide"}
    for block in code:
        exec(compile(block, str(GUIDE), "exec"), names)
    yield names
    registry._REGISTERED.clear()
    registry._REGISTERED.update(known)


def test_the_examples_are_registered_and_act_where_they_say(guide):
    assert set(EXAMPLES) <= set(method_names())
    for name, station in EXAMPLES.items():
        cls = method_class(name)
        assert cls.stations == (station,) == tuple({hook.station for hook in hooks_of(cls).values()})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_hold_what_every_method_holds(guide, zoo_model, name, family):
    check_generating(zoo_model(family), method_class(name)(), list(UNEQUAL_PROMPTS))


def test_the_examples_are_used_as_shown(guide, zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(list(UNEQUAL_PROMPTS))
    found = guide["answers"](zoo.model, None, inputs)
    assert len(found) == 3 and all(answer.shape[0] == 2 for answer in found)
    assert_pristine(zoo.model)
