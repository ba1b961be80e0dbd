"""What `--engine vllm` says before anything is loaded; no vLLM is needed for it."""

import pytest

from vlm_guard import cli
from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.eval.run.decoding import CheckpointDecoding, Decoding
from vlm_guard.eval.run.engines import vllm_settings
from vlm_guard.eval.run.engines.vllm_settings import check_vllm_settings, offer_texts, sampling_arguments
from vlm_guard.eval.run.models import generation_settings, load_config
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings, parse_methods
from vlm_guard.serving.vllm.served_guards import meta_model


def run(capsys, out, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "--engine", "vllm", "--out", str(out), *arguments])
    return stopped.value.code, capsys.readouterr().err.strip()


def test_without_vllm_it_names_the_extra(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_settings, "installed_version", lambda: None)
    code, said = run(capsys, tmp_path / "run", "--count", "1")
    assert code == 2 and "vlm-guard-hf[vllm]" in said and "\n" not in said and not (tmp_path / "run" / "none").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "dola"], "dola cannot be served inside vLLM"),
        (["--method", "none", "--method", "vcd+icd"], "vcd and icd all contrast"),
        (["--endpoint", "http://localhost:9/v1"], "--endpoint cannot be used beside --engine vllm"),
        (["--attention-backend", "torch"], "--attention-backend cannot be used"),
        (["--device", "cuda"], "on the CPU only"),
        (["--num-beams", "2"], "no beams"),
        (["--task", "grounding", "--set", "grounding.parts=logp"], "grounding.parts=logp cannot be used"),
        (["--task", "grounding", "--set", "grounding.repair=rewrite"], "grounding.repair=rewrite cannot be used"),
        (["--task", "grounding", "--set", "grounding.lens_layers=0"], "grounding.lens_layers cannot be used"),
        (["--engine", "other"], "engines are transformers, vllm"),
    ],
)
def test_what_vllm_cannot_do_is_one_line(capsys, tmp_path, flags, said):
    code, found = run(capsys, tmp_path, *flags)
    assert code == 2 and said in found and "\n" not in found


def test_more_than_one_process_and_idle_settings(tmp_path):
    with pytest.raises(ValueError, match="start it once"):
        check_vllm_settings(RunSettings(engine="vllm"), 2)
    with pytest.raises(ValueError, match="--max-model-len is for vLLM's engine"):
        evaluate(RunSettings(max_model_len=99), tmp_path)


def test_methods_are_declared_with_all_that_was_set():
    model, _ = meta_model(str(BUILTIN_DIR))

    def texts(methods, **options):
        settings = RunSettings(engine="vllm", methods=methods, options=options)
        return offer_texts(settings, parse_methods(settings.methods, settings.options), model)

    assert texts(["none", "pai:guidance=1", "m3id+zerotuning"], **{"pai.gain": 0.4}) == [
        "none",
        "pai:pai.gain=0.4,pai.guidance=1",
        "m3id+zerotuning",
    ]
    assert texts(["none", "pai"], gain=0.4) == ["none", "pai:pai.gain=0.4"]
    (auto,) = texts(["auto"])
    assert auto.startswith("pai") and "auto" not in auto


def test_a_checkpoints_own_settings_are_followed_or_refused():
    own = generation_settings(str(BUILTIN_DIR), None, load_config("builtin"))
    assert own.ends == (2,) and sampling_arguments(Decoding(), own)["stop_token_ids"] == [2]
    penalty = CheckpointDecoding(kept={"repetition_penalty": 1.1, "min_p": 0.1}, ends=(2,))
    assert sampling_arguments(Decoding(), penalty)["repetition_penalty"] == 1.1
    for kept, decoding in (({"no_repeat_ngram_size": 3}, Decoding()), ({"min_p": 0.1}, Decoding(do_sample=True))):
        with pytest.raises(ValueError, match=next(iter(kept))):
            sampling_arguments(decoding, CheckpointDecoding(kept=kept, ends=()))
