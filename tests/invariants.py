"""What every method must hold on every model, as functions: for the matrix of built-in methods and for others."""

import warnings

import torch

from vlm_guard import wrap
from vlm_guard.method import Method
from zoo import assert_pristine

SETTINGS = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 5, "do_sample": False}


def logits(model, inputs):
    """[B, P, V] of one forward pass."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(**inputs).logits


def generate(model, inputs, **extra):
    """A greedy answer of five tokens with its logits."""
    with torch.no_grad():
        return model.generate(**inputs, **(SETTINGS | extra))


def first_logits(model, inputs):
    """[B, V] of the first generated token, of contrasts too."""
    return generate(model, inputs, max_new_tokens=1).logits[0]


def close(first, second, scale):
    """Equal up to float32 rounding of sums in another order, relative to the size of the logits."""
    return float((first - second).abs().max()) <= 2e-5 * max(1.0, float(scale.abs().max()))


def check_generating(zoo, method: Method, prompts):
    """All invariants of a method, seen through `generate`: for attention, hidden states and contrasts alike."""
    inputs = zoo.make_inputs(zoo.adapt(prompts))
    plain = first_logits(zoo.model, inputs)
    with wrap(zoo.model, None, type(method).neutral()):
        assert close(first_logits(zoo.model, inputs), plain, plain), "neutral options are the identity"
    with wrap(zoo.model, None, method):
        together = generate(zoo.model, inputs)
        assert not close(together.logits[0], plain, plain), "the method must act"
        for row, prompt in enumerate(zoo.adapt(prompts)):
            alone = first_logits(zoo.model, zoo.make_inputs([prompt]))[0]
            assert close(together.logits[0][row], alone, alone), f"row {row} of a padded batch"
        recomputed = generate(zoo.model, inputs, use_cache=False)
    assert torch.equal(together.sequences, recomputed.sequences)
    for first, second in zip(together.logits, recomputed.logits):
        assert close(first, second, second), "decoding with a cache equals decoding without"
    assert torch.equal(first_logits(zoo.model, inputs), plain), "a removed guard leaves no trace"
    assert_pristine(zoo.model)
