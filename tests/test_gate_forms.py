"""How gates are written, what they measure, and which of them changes no greedy answer."""

import method_cases
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.method.gate import Gate
from zoo import UNEQUAL_PROMPTS

torch.set_num_threads(1)


def test_gates_are_read_from_text_and_measure_what_they_say():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, -torch.inf], [1.0, 0.0, 0.0, 0.0]])
    probabilities = logits.softmax(-1)
    entropy = torch.distributions.Categorical(probs=probabilities).entropy()
    for value in (0.0, 0.5, 1.2, 1.38, 2.0):
        assert torch.equal(Gate.read(f"entropy>{value}").is_open(logits), entropy > value)
        assert torch.equal(Gate.read(f" max_p < {value} ").is_open(logits), probabilities.amax(-1) < value)
    # e^-1 = 0.368, e^-100, and two equally probable ones.
    shares = {"rival>0.36": [1, 0, 1], "rival>=0.37": [1, 0, 0], "rival>=1": [1, 0, 0], "rival>1": [0] * 3}
    for text, expected in (shares | {"rival>0": [1] * 3}).items():
        assert Gate.read(text).is_open(logits).tolist() == [bool(value) for value in expected], text
    assert Gate.read("entropy>=0").is_open(logits).all() and Gate.read("max_p<=1").is_open(logits).all()
    assert Gate.read("") is None and Gate.read("  ") is None
    assert Gate.read("entropy>1.38").ever_opens(4) and not Gate.read("entropy>1.39").ever_opens(4)
    assert Gate.read("max_p<0.26").ever_opens(4) and not Gate.read("max_p<0.25").ever_opens(4)
    assert Gate.read("max_p<=.25").ever_opens(4)
    assert Gate.read("rival>=1").ever_opens(4) and not Gate.read("rival>1").ever_opens(4)


@pytest.mark.parametrize("name", ["vcd", "icd", "m3id", "softpag", "flb"])
def test_greedy_answers_without_a_rival_are_those_without_a_gate(zoo_model, name):
    """A contrast that keeps tokens down to a share of the best decides nothing where only one is kept."""
    zoo = zoo_model("llava")
    options = method_cases.options(name) | {"plausibility": 0.9}
    processor, answers = method_cases.processor(name, "llava"), []
    inputs = zoo.make_inputs(UNEQUAL_PROMPTS)
    for gate in ({}, {"gate": "rival>=0.9"}):
        with wrap(zoo.model, processor, name, **options, **gate):
            answers.append(zoo.model.generate(**inputs, do_sample=False, max_new_tokens=24))
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    "text", ["entropy", "entropy<0.5", "max_p>0.5", "entropy>-1", "entropy>x", "entropy>1e", "p<1"]
)
def test_other_texts_are_no_gates(zoo_model, text):
    with pytest.raises(ValueError, match=r"pai: cannot read the gate.*entropy>0\.5"):
        wrap(zoo_model("llava").model, None, "pai", gate=text)
