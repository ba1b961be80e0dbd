"""What the heads of a model do, measured on the built-in one, and the lists that go into its profile."""

import json

import pytest
import torch

from vlm_guard import cli
from vlm_guard.eval.attention.heads import LISTS, _first_layer, _outstanding, head_facts
from vlm_guard.eval.run.models import load_model
from vlm_guard.families.profiles import read_profile


def test_the_built_in_models_heads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", "builtin", "--heads", "--save", "--data", "scenes:common:67", "--count", "3", "--json"])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    facts, sinks = report["heads"], report["sinks"]
    assert sinks["pictures"] == 3 and [item["layer"] for item in sinks["by_layer"]] == facts["layers"]
    assert facts["pictures"] == 3 and facts["nouns"] >= 6
    for name in (
        "sink_rate",
        "sink_rate_without_picture",
        "value_norm_of_sinks",
        "image_share",
        "retrieval",
        "distance",
    ):
        assert torch.tensor(facts[name]).shape == (6, len(facts[name][0])), name
        assert torch.tensor(facts[name]).min() >= 0
    best = torch.tensor(facts["retrieval"]).max()
    assert best > facts["retrieval_chance"], "some head looks at the patch of the word that comes"
    profile = read_profile(tmp_path / "builtin.json")
    assert {name: profile.value(f"heads_{name}") for name in LISTS} == facts["lists"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", str(_picture(tmp_path)), "--method", "pai:heads=retrieval", "--max-new-tokens", "4"])
    assert ended.value.code == 0


def _picture(folder):
    from vlm_guard.eval.data.datasets import open_dataset

    return next(iter(open_dataset("scenes:common:67", 1).images.values()))


def test_save_needs_heads(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", "builtin", "--save"])
    assert ended.value.code == 2 and "--heads" in capsys.readouterr().err


def test_heads_stand_out_and_tokens_grow():
    values = torch.zeros(2, 4)
    values[1, 2] = 1
    assert _outstanding(values).nonzero().tolist() == [[1, 2]]
    assert _first_layer(torch.tensor([9.0, 1.0, 1.0, 6.0, 7.0])) == 2, "state 0 is the embedding"
    assert _first_layer(torch.tensor([1.0, 2.0])) is None


def test_sinks_alone_are_those_measured_with_the_heads(capsys):
    common = ["inspect", "builtin", "--json", "--data", "scenes:common:67", "--count", "1"]
    reports = []
    for option in ("--sinks", "--heads"):
        with pytest.raises(SystemExit) as ended:
            cli.main([*common, option])
        assert ended.value.code == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["sinks"] == reports[1]["sinks"] and "heads" not in reports[0]


def test_no_pictures_are_refused():
    loaded = load_model("builtin", device="cpu")
    with pytest.raises(ValueError, match="none were given"):
        head_facts(loaded.model, loaded.processor, [])
