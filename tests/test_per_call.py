"""One guarded model, a method for each call, from several threads."""

import threading

import pytest
import torch

from vlm_guard import wrap
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)

RECORD = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 4}
CALLS = [("pai", {"gain": 0.6}), ("m3id", {"forgetting": 0.3}), ("none", {}), ("zerotuning", {"factor": 0.3})]


def logits(out):
    return torch.stack(out.logits)


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


@pytest.fixture
def inputs(llava):
    return llava.make_inputs([Prompt(text_before=3, images=1, text_after=6, content=0)])


def alone(llava, inputs, method, options):
    with wrap(llava.model, None, method, **options) as guard:
        return logits(guard.generate(**inputs, **RECORD))


@pytest.mark.parametrize("own", ["none", "zerotuning:factor=0.4"])
@pytest.mark.parametrize(("method", "options"), CALLS, ids=[name for name, _ in CALLS])
def test_a_call_has_its_own_method_and_leaves_the_guards(llava, inputs, own, method, options):
    expected, usual = alone(llava, inputs, method, options), alone(llava, inputs, own, {})
    text = method + "".join(f":{name}={value}" for name, value in options.items())
    with wrap(llava.model, None, own) as guard:
        for _ in range(2):
            assert torch.equal(logits(guard.generate(**inputs, **RECORD, method=method, **options)), expected)
            assert torch.equal(logits(llava.model.generate(**inputs, **RECORD, guard=text)), expected)
            assert torch.equal(logits(guard.generate(**inputs, **RECORD)), usual)
    assert_pristine(llava.model)


def test_threads_queue_and_each_gets_its_own_answer(llava, inputs):
    expected = [alone(llava, inputs, method, options) for method, options in CALLS]
    found: list[list[torch.Tensor]] = [[] for _ in CALLS]

    def ask(place):
        method, options = CALLS[place]
        for _ in range(3):
            found[place].append(logits(guard.generate(**inputs, **RECORD, method=method, **options)))

    with wrap(llava.model, None, "none") as guard:
        threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(CALLS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for answers, wanted in zip(found, expected):
        assert len(answers) == 3
        assert all(torch.equal(answer, wanted) for answer in answers)
    assert_pristine(llava.model)


def test_mistakes_leave_the_guard_as_it_was(llava, inputs):
    usual = alone(llava, inputs, "zerotuning", {"factor": 0.4})
    with wrap(llava.model, None, "zerotuning", factor=0.4) as guard:
        with pytest.raises(ValueError, match="unknown method 'pay'"):
            guard.generate(**inputs, method="pay")
        with pytest.raises(ValueError, match=r"gain=0.3, an option of pai.*no method=.*method='pai:gain=0.3'"):
            guard.generate(**inputs, gain=0.3)
        with pytest.raises(ValueError, match="option of zerotuning, but no method="):
            guard.generate(**inputs, factor=0.3)
        with pytest.raises(ValueError, match="not used by the model"):
            guard.generate(**inputs, never_heard_of=1)
        with pytest.raises(ValueError, match="option gain is 9"):
            llava.model.generate(**inputs, guard="pai:gain=9")
        for text in ("os:system", "evil.py", "evil.py:Method:strength=1"):
            with pytest.raises(ValueError, match="not from a file or module"):
                llava.model.generate(**inputs, guard=text)
        with pytest.raises(ValueError, match="needs the sink dimensions"):
            guard.generate(**inputs, method="var")
        assert torch.equal(logits(guard.generate(**inputs, **RECORD)), usual)
    assert_pristine(llava.model)


def test_prepared_methods_are_kept_up_to_a_number(llava, inputs):
    with wrap(llava.model, None, "none") as guard:
        for place in range(guard._per_call.KEPT + 3):
            guard.generate(**inputs, max_new_tokens=1, method="zerotuning", factor=0.3 + place / 100)
        assert len(guard._per_call._prepared) == guard._per_call.KEPT
