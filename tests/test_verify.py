"""`vlm-guard verify`: it passes where all is well, and it fails where something is not."""

import json
from dataclasses import dataclass

import pytest
import torch

from vlm_guard import builtin, cli
from vlm_guard.bench import verify as verify_module
from vlm_guard.bench.identity import check_method, plain_answer, rounding_of
from vlm_guard.bench.random_prompts import noise_pictures
from vlm_guard.bench.verify import check_kernels, verify
from vlm_guard.bench.verify_text import WIDTH, verify_text
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.profiles import find_profile
from vlm_guard.kernels.edited_attention import EditedAttention, load_backend
from vlm_guard.method import Method, option, registry
from vlm_guard.method.model_choice import choice_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def loaded():
    model, processor = builtin()

    def make_inputs(rows, seed):
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]}],
            add_generation_prompt=True,
        )
        return dict(processor(images=noise_pictures(rows, 96, seed), text=[text] * rows, return_tensors="pt"))

    return model, processor, make_inputs


@pytest.fixture
def few_cases(monkeypatch):
    some = verify_module.torch_cases()[::40]
    monkeypatch.setattr(verify_module, "torch_cases", lambda: some)
    return len(some)


def toy(monkeypatch, name, neutral, leaves_something=False):
    """A method that makes hidden states longer; badly made ones are not neutral, or not gone after removal."""

    @dataclass(frozen=True, kw_only=True)
    class Toy(Method):
        stations = ("hidden",)

        strength: float = option(1.0, help="how much longer", range=(0.0, 9.0), neutral=neutral)

        def prepare(self, target):
            if leaves_something:
                head = target.model.get_output_embeddings()
                head.register_forward_hook(lambda module, given, logits: logits + 1)

        def hidden_parts(self, target, prepared):
            return {"residual": [entry.index for entry in target.architecture.layers][1:]}

        def edit_hidden(self, call):
            return call.hidden * (1 + self.strength)

    Toy.name = name
    monkeypatch.setitem(registry._REGISTERED, name, Toy)


def test_all_is_well_on_the_built_in_model(loaded, few_cases):
    model, processor, make_inputs = loaded
    found = verify(model, processor, make_inputs, methods=["pai", "vcd"], seconds=120, tokens=3, rounds=1)
    assert found["state"] == "passed"
    torch_entry = found["kernels"][0]
    assert torch_entry["checked"] == few_cases and 0 < torch_entry["worst_part_of_budget"] <= 1
    for check in found["methods"]:
        assert check["state"] == "passed" and check["removed"] is True
        assert check["identity"] <= check["allowed"] < 0.01 < check["effect"] < 5000
    assert [entry["method"] for entry in found["speed"]["entries"]] == ["plain, twice the rows", "pai", "vcd"]
    for entry in found["speed"]["entries"]:
        assert entry["prefill"]["ratio_to_unguarded"]["median"] > 0 < entry["decode"]["ratio_to_unguarded"]["median"]
    json.dumps(found)


def test_a_method_whose_neutral_parameters_change_something_fails(loaded, monkeypatch):
    model, processor, make_inputs = loaded
    inputs = make_inputs(1, 0)
    rounding = rounding_of(model, inputs, 3)
    assert 0 < rounding["allowed"] < 0.01
    toy(monkeypatch, "well_made", neutral=0.0)
    toy(monkeypatch, "never_neutral", neutral=0.5)
    good = check_method(model, processor, "well_made", inputs, 3, rounding)
    assert (good.state, good.removed) == ("passed", True) and good.effect > 0.01
    bad = check_method(model, processor, "never_neutral", inputs, 3, rounding)
    assert bad.state == "failed" and "neutral parameters move a logit by" in bad.reason and bad.removed


def test_a_method_that_leaves_something_behind_fails(monkeypatch, loaded):
    _, processor, make_inputs = loaded
    model, _ = builtin()
    inputs = make_inputs(1, 0)
    toy(monkeypatch, "sticky", neutral=0.0, leaves_something=True)
    check = check_method(model, processor, "sticky", inputs, 3, rounding_of(model, inputs, 3))
    assert check.state == "failed" and check.removed is False and "after remove()" in check.reason


def test_a_method_that_crashes_fails_and_one_that_does_not_fit_is_refused(monkeypatch, loaded):
    model, processor, make_inputs = loaded
    inputs = make_inputs(1, 0)
    rounding = rounding_of(model, inputs, 3)

    def crash(self, target):
        raise IndexError("out of range")

    toy(monkeypatch, "crashing", neutral=0.0)
    monkeypatch.setattr(registry._REGISTERED["crashing"], "prepare", crash)
    assert check_method(model, processor, "crashing", inputs, 3, rounding).reason == "IndexError: out of range"
    refused = check_method(model, None, "icd", inputs, 3, rounding)
    assert refused.state == "refused" and "processor" in refused.reason
    before = plain_answer(model, inputs, 3)
    assert torch.equal(before.logits, plain_answer(model, inputs, 3).logits)


def test_a_wrong_kernel_is_found(monkeypatch, few_cases):
    right = load_backend("torch")

    def slightly_wrong(problem):
        found = right(problem)
        return EditedAttention(
            output=found.output * 1.1, masses=found.masses, weights=found.weights, logsumexp=found.logsumexp
        )

    monkeypatch.setattr("vlm_guard.kernels.benchmark.correctness.load_backend", lambda name: slightly_wrong)
    entry = check_kernels(verify_module.Clock(seconds=60), lambda line: None)[0]
    # A tenth is within the rounding of some problems in half precision, and of none in float32.
    wide = [case for case, dtype in verify_module.torch_cases() if dtype == "float32"]
    assert entry["state"] == "failed" and entry["checked"] == few_cases
    assert sum("float32" in failure for failure in entry["failures"]) == len(wide) > 0


def test_what_the_time_did_not_reach_is_said(loaded, few_cases):
    model, processor, make_inputs = loaded
    found = verify(model, processor, make_inputs, methods=["pai"], seconds=1e-6, tokens=3, rounds=1)
    assert found["state"] == "incomplete" and found["kernels"][0]["checked"] == 1
    assert found["methods"][0]["state"] == "not reached" and found["speed"]["not_reached"]


def test_what_people_use_most_is_checked_first(loaded):
    names = verify_module.chosen_methods(None, loaded[0])
    assert sorted(names) == [name for name in registry.method_names() if name != "none"]
    meant = [method.name for method in registry.resolve_methods(choice_of_builtin(loaded[0]))]
    assert names[: len(meant)] == meant
    first = [name for name in verify_module.NAMED_FIRST if name not in meant]
    assert names[len(meant) : len(meant) + len(first)] == first and names.index("vcd") < names.index("act")


def choice_of_builtin(model):
    return choice_of(describe_architecture(model), find_profile(model.config)).text


def ratios(value):
    return {"ratio_to_unguarded": {"median": value, "p20": value * 0.98, "p80": value * 1.07}, "median_s": 0.01}


def test_the_text_says_what_is_missing_and_keeps_its_columns():
    checked = {"state": "passed", "reason": "", "identity": 0.0, "allowed": 1e-4, "removed": True, "idle": ""}
    found = {
        "state": "incomplete",
        "seconds": 65.0,
        "seconds_given": 60.0,
        "created": "today",
        "machine": {
            "versions": {"torch": "2.13.0"},
            "python": "3.13",
            "processor": "one",
            "logical_processors": 2,
            "torch_threads": 1,
            "load_average_1min": 4.0,
        },
        "model": {"name": "m", "class": "M", "parameters": 1e6, "dtype": "float32", "device": "cpu"},
        "kernels": [],
        "rounding": {"allowed": 1e-4, "repeated": 0.0},
        "methods": [
            checked | {"method": "pai", "effect": 1.5},
            checked | {"method": "var", "effect": 0.0, "idle": "this model has no sinks"},
            checked | {"method": "dola", "state": "not reached", "identity": None},
        ],
        "speed": {
            "entries": [
                {"method": "carve", "prefill": ratios(130.77), "decode": ratios(1.0)},
                {"method": "opera", "prefill": ratios(20.0), "decode": ratios(0.0), "answer": ratios(3.0)},
            ],
            "not_reached": ["vcd"],
            "rounds": 1,
            "new_tokens": 2,
            "plain": {"prefill": {"median_s": 0.01}, "decode": {"median_s": 0.01}},
        },
    }
    lines = verify_text(found).splitlines()
    whole = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= WIDTH
    assert "Not all was reached with --minutes 1: give more" in whole and "see load" in whole
    assert "(no change) no change because: this model has no sinks" in whole
    assert "(--minutes): dola" in whole and "(--minutes): vcd" in whole
    header, carve, opera = (next(line for line in lines if word in line) for word in ("later token", "carve", "opera"))
    later = header.index("later token")
    assert carve[later - 2 :].startswith("  1.00") and opera[later:] == "-" and "comes in one piece" in whole
    assert "3.00 (" in opera


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as finished:
        cli.main(["verify", *arguments])
    printed = capsys.readouterr()
    return finished.value.code, printed.out, printed.err


def test_the_command_prints_a_block_and_writes_json(capsys, tmp_path, few_cases):
    path = tmp_path / "found.json"
    code, out, _ = run(capsys, "--method", "pai", "--tokens", "2", "--rounds", "1", "--json", str(path))
    assert code == 0 and out.startswith("vlm-guard verify: PASSED")
    assert max(map(len, out.splitlines())) <= WIDTH and "processor: " in out and "transformers" in out
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["state"] == "passed" and found["model"]["name"] == "builtin"
    assert verify_text(found) == out.rstrip("\n")


def test_a_named_method_that_does_not_fit_is_a_failure(capsys, few_cases, monkeypatch):
    def refuse(self, target):
        raise ValueError("this model has none of what it needs " * 20)

    toy(monkeypatch, "choosy", neutral=0.0)
    monkeypatch.setattr(registry._REGISTERED["choosy"], "prepare", refuse)
    code, out, _ = run(capsys, "--method", "choosy", "--tokens", "2", "--rounds", "1")
    assert code == 1 and out.startswith("vlm-guard verify: FAILED") and "this model has none" in out
    assert max(map(len, out.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--minutes", "0"], "allowed: above 0, up to 600"),
        (["--minutes", "nan"], "allowed: above 0, up to 600"),
        (["--minutes", "soon"], "--minutes"),
        (["--tokens", "1"], "--tokens"),
        (["--rounds", "0"], "--rounds"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--dtype", "int8"], "allowed: auto, float32"),
        (["--method", "vaar"], "Did you mean 'var'"),
        (["--method", "pai:gain=0.4"], "verify checks methods as they are"),
        (["--json", "/"], "a file in a folder that exists"),
        (["--json", "/there/is/none.json"], "a file in a folder that exists"),
        (["--json"], "requires an argument"),
        (["./missing/folder"], "missing/folder"),
        (["builtin", "builtin"], "unexpected extra argument"),
    ],
)
def test_bad_input_is_exit_code_2(capsys, arguments, says):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and "Traceback" not in err
    assert says in " ".join(err.replace("│", " ").split())
