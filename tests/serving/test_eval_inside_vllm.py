"""`--engine vllm`: an evaluation inside vLLM has the records of one in transformers."""

import os

import pytest
from served_answers import assert_scored_alike

from vlm_guard.builtin_model import shipped_folder
from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings

pytest.importorskip("vllm", reason="vLLM is not installed; docs/serving.md says how to make an environment with it")

COMMON = {"data": "scenes:common", "count": 4, "max_new_tokens": 48, "resamples": 100, "batch_size": 5}
METHODS = ["none", "auto", "m3id"]
ROUNDING = 1e-3


@pytest.fixture(scope="module", autouse=True)
def _settings():
    kept = dict(os.environ)
    os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"})
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def here(folder):
    evaluate(RunSettings(**COMMON, methods=METHODS, device="cpu"), folder / "here")
    return folder / "here"


@pytest.fixture(scope="module")
def inside(folder):
    """Stopped in the middle, and gone on with."""
    settings = RunSettings(**COMMON, methods=METHODS, engine="vllm", max_model_len=256)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings, folder / "inside", progress=StopAfter(20))
    assert 0 < sum(len(records(folder / "inside" / name)) for name in METHODS) <= 25
    evaluate(settings, folder / "inside")
    return folder / "inside"


class StopAfter:
    """Ctrl-C after so many samples."""

    def __init__(self, left):
        self.left = left

    def start(self, total, done):
        pass

    def advance(self, count, method):
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt

    def stop(self):
        pass


def records(folder):
    return read_records(folder / "samples.jsonl")[0]


def answered(folder):
    fields = ("prompt", "text", "tokens", "finished", "score", "batch", "turn")
    return {key: [record[name] for name in fields] for key, record in records(folder).items()}


def test_scored_captions_are_those_of_transformers(tmp_path):
    """The task `grounding`: mentions, scores, boxes, repair and what is computed from them."""
    common = {**COMMON, "tasks": ["grounding"], "grounding": {"max_new_tokens": 48}, "methods": ["none", "auto"]}
    del common["max_new_tokens"]
    evaluate(RunSettings(**common, engine="vllm", max_model_len=256), tmp_path / "inside")
    evaluate(RunSettings(**common, device="cpu"), tmp_path / "here")
    assert_scored_alike(tmp_path / "inside", tmp_path / "here")


def test_records_and_results_are_those_of_transformers(here, inside):
    left, right = read_results(inside), read_results(here)
    assert [method.label for method in left.methods] == METHODS
    for ours, theirs in zip(left.methods, right.methods, strict=True):
        assert answered(inside / ours.directory) == answered(here / theirs.directory)
        assert ours.chair == theirs.chair and ours.pope == theirs.pope and ours.methods == theirs.methods
    assert {**left.model, "engine": None} == {**right.model, "engine": None} and left.model["engine"] == "vllm"
    assert left.template == right.template and left.decoding == right.decoding and left.profile == right.profile
    assert left.environment["versions"].keys() - right.environment["versions"].keys() == {"vllm"}


def test_how_much_the_model_prefers_yes_is_read_as_in_transformers(here, inside):
    for name in METHODS:
        ours, theirs = records(inside / name), records(here / name)
        for key, record in theirs.items():
            assert record.keys() == ours[key].keys()
            assert ours[key].get("yes_margin") == pytest.approx(record.get("yes_margin"), abs=ROUNDING)
    assert any("yes_margin" in record for record in records(inside / "none").values())


def test_the_two_can_be_compared_and_what_differs_is_said(here, inside):
    compared = compare_runs([here, inside])
    assert len(compared.records) == 2 * len(METHODS) and any("model.engine" in note for note in compared.notes)


def test_another_engine_does_not_go_on_with_its_records(inside):
    with pytest.raises(ValueError, match="holds a run with other settings"):
        evaluate(RunSettings(**COMMON, methods=METHODS, device="cpu"), inside)


def test_the_plain_model_alone_runs_in_plain_vllm_and_a_short_engine_cuts_no_answer_off(inside, tmp_path):
    plain = RunSettings(**COMMON | {"max_new_tokens": 12}, methods=["none"], engine="vllm", max_model_len=256)
    evaluate(plain.model_copy(update={"tasks": ["pope"]}), tmp_path / "plain")
    known, found = answered(inside / "none"), answered(tmp_path / "plain" / "none")
    assert found and all(found[key][1:4] == known[key][1:4] for key in found)
    short = RunSettings(**COMMON, methods=["none"], tasks=["chair"], engine="vllm", max_model_len=90)
    with pytest.raises(ValueError, match="--max-model-len"):
        evaluate(short, tmp_path / "short")


def test_plain_vllm_starts_after_an_engine_whose_methods_look_between_the_layers(tmp_path):
    settings = {**COMMON, "count": 1, "max_new_tokens": 4, "tasks": ["chair"], "engine": "vllm", "max_model_len": 256}
    evaluate(RunSettings(**settings, methods=["var:sink_dimensions=72,sink_threshold=4"]), tmp_path / "guarded")
    evaluate(RunSettings(**settings, methods=["none"]), tmp_path / "plain")
    assert answered(tmp_path / "plain" / "none")


@pytest.mark.parametrize("method", ["none", "m3id"])
def test_the_same_seed_draws_the_same_answers(method, tmp_path):
    drawn = {"decoding": {"do_sample": True, "temperature": 0.8}, "engine": "vllm", "max_model_len": 256}
    settings = RunSettings(**COMMON | {"max_new_tokens": 12}, **drawn, tasks=["chair"], methods=[method])
    evaluate(settings, tmp_path / "first")
    evaluate(settings, tmp_path / "again")
    assert answered(tmp_path / "first" / method) == answered(tmp_path / "again" / method)


def test_a_real_language_model_in_llavas_classes(tmp_path):
    """SmolLM2 with tied embeddings, other head sizes and a chat template of its own."""
    try:
        shipped_folder("smol")
    except ValueError as error:
        pytest.skip(str(error))
    settings = {**COMMON, "count": 2, "max_new_tokens": 24, "methods": ["none", "pai", "zerotuning"], "model": "smol"}
    evaluate(RunSettings(**settings, device="cpu"), tmp_path / "here")
    evaluate(RunSettings(**settings, engine="vllm", max_model_len=256), tmp_path / "inside")
    for name in settings["methods"]:
        assert answered(tmp_path / "inside" / name) == answered(tmp_path / "here" / name)
