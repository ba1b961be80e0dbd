"""The command line as a newcomer uses it: help without torch, listings as JSON, one line for every mistake."""

import json
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from vlm_guard import cli
from vlm_guard.families.layers import select_layers
from vlm_guard.families.table import model_rows
from vlm_guard.method.registry import method_class, method_names
from vlm_guard.method.table import describe_class


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command run in this process."""
    with pytest.raises(SystemExit) as finished:
        cli.main(list(arguments))
    printed = capsys.readouterr()
    return finished.value.code, printed.out, printed.err


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (96, 96), (120, 180, 90)).save(path)
    return path


def test_help_and_listings_do_not_import_torch():
    code = (
        "import sys; from vlm_guard import cli\n"
        "for asked in ['--help'], ['methods'], ['tasks'], ['tasks', 'grounding'], ['protocols']:\n"
        "    try: cli.main(asked)\n"
        "    except SystemExit as stopped: assert not stopped.code, asked\n"
        "sys.exit(' '.join({'torch', 'transformers', 'nltk', 'scipy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (
        "generate",
        "eval",
        "compare",
        "methods",
        "models",
        "calibrate",
        "inspect",
        "doctor",
        "bench",
        "scenes",
    ):
        assert name in done.stdout


def test_every_command_has_help(capsys):
    from pathlib import Path

    for path in Path(cli.__file__).parent.glob("[a-z]*.py"):
        code, out, _ = run(capsys, path.stem.replace("_", "-"), "--help")
        assert code == 0 and "Usage" in out, path.stem


def test_no_word_of_an_option_s_help_is_lost_as_markup():
    """A text in square brackets would be taken for a style."""
    from pathlib import Path

    for path in Path(cli.__file__).parent.glob("[a-z]*.py"):
        texts = re.findall(r'help=\s*"([^"]*)"', path.read_text(encoding="utf-8"))
        assert not [text for text in texts if re.search(r"(?<!\\\\)\[[a-z][^\]]*\]", text)], path.name


@pytest.mark.parametrize("command", ["methods", "models", "doctor"])
def test_listings_are_json(capsys, command):
    code, out, _ = run(capsys, command, "--json")
    assert code == 0 and json.loads(out)


def test_one_method_shows_its_options(capsys):
    code, out, _ = run(capsys, "methods", "var", "--json")
    described = json.loads(out)
    assert code == 0 and described["name"] == "var"
    assert {"move_fraction", "min_content_share", "layers"} <= {item["name"] for item in described["options"]}
    code, out, _ = run(capsys, "methods", "var")
    assert code == 0 and "move_fraction" in out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_width_cuts_names_or_sentences(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("revisit", "gift"):
        described = describe_class(method_class(name))
        _, out, _ = run(capsys, "methods", name)
        words = set(out.split())
        for entry in described["options"]:
            assert {entry["name"], *entry["help"].split(), *entry["paper"].split()} <= words
        assert {entry["profile"] for entry in described["settings"]} <= words
    _, out, _ = run(capsys, "models")
    assert {row["model_type"] for row in model_rows()} <= set(out.split()) and "…" not in out
    assert len(out.splitlines()) < 280
    assert set(method_names()) <= set(run(capsys, "methods")[1].split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods", "vaar"], "Did you mean 'var'"),
        (["generate", "nowhere.png"], "there is no picture nowhere.png"),
        (["generate", "What is this?", "PICTURE"], "the picture first, then the prompt"),
        (["generate", "."], "this is a folder; vlm-guard caption . --out FILE"),
        (["generate", "PICTURE", "--method", "vra"], "unknown method 'vra'"),
        (["generate", "PICTURE", "--method", "var", "--set", "move_fraction"], "--set takes"),
        (["generate", "PICTURE", "--method", "var", "--set", "move_fraction=2"], "allowed: 0.0 to 1.0"),
        (["generate", "PICTURE", "--method", "none", "--device", "cuda:7"], "cuda:7"),
        (["generate", "PICTURE", "--method", "none", "--dtype", "float8"], "allowed: auto"),
        (["inspect", "no/such/model"], "no/such/model"),
        (["calibrate", "no/such/model"], "no/such/model"),
        (["calibrate", "builtin", "--data", "scenes:nowhere", "--count", "2"], "nowhere"),
        (["calibrate", "builtin", "--data", "photos", "--count", "2"], "photos"),
        (["calibrate", "builtin", "--count", "2", "--only", "heads"], "known are iri, sinks, vti, zerotuning, layers"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, picture, arguments, message):
    given = [str(picture) if item == "PICTURE" else item for item in arguments]
    code, _, err = run(capsys, *given)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and message in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["nothing"], ["generate"], ["generate", "a", "--max-new-tokens", "0"]])
def test_wrong_usage_is_exit_code_2(capsys, arguments):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "Traceback" not in err


def test_a_damaged_picture_is_a_clear_error(capsys, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    code, _, err = run(capsys, "generate", str(path), "--method", "none")
    assert code == 2 and "error:" in err and "Traceback" not in err


def test_generate_prints_an_answer_for_each_method(capsys, picture):
    arguments = ["generate", str(picture), "Is there a dog in the image?", "--method", "none", "--method", "var"]
    code, out, err = run(capsys, *arguments, "--max-new-tokens", "8", "--json")
    answers = json.loads(out)
    assert "note: var changed nothing here: it edits no layer of this model" in err
    assert "unchanged" not in answers[0] and answers[1]["unchanged"] == "it edits no layer of this model"
    assert code == 0 and [answer["method"] for answer in answers] == ["none", "var"]
    assert all(answer["text"] and answer["tokens"] > 0 for answer in answers)


def test_calibrate_says_that_the_built_in_model_has_no_sinks(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path / "profiles"))
    code, _, err = run(capsys, "calibrate", "builtin", "--count", "2", "--only", "sinks")
    assert code == 2 and "shows no attention sinks" in err
    assert not (tmp_path / "profiles").exists()


def test_calibrate_goes_on_after_a_measurement_that_the_model_does_not_allow(capsys, tmp_path, monkeypatch):
    from vlm_guard import builtin, wrap
    from vlm_guard.families.profiles import find_profile

    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path))
    code, out, err = run(capsys, "calibrate", "builtin", "--count", "2", "--json")
    report = json.loads(out)
    facts = report["facts"]
    assert code == 0 and "sinks: not measured" in err and list(report["refusals"]) == ["sinks"]
    assert set(facts) == {
        "image_layers",
        "zerotuning_factor",
        "iri_attention_recovery",
        "iri_mlp_recovery",
        "vti_text_direction",
        "vti_vision_direction",
    }
    model, processor = builtin()
    merged = find_profile(model.config)
    assert merged.value("iri_mlp_recovery") == facts["iri_mlp_recovery"]["value"]
    assert merged.value("sink_dimensions") == [], "what the shipped profile knows is still known"
    for method in ("iri", "vti", "zerotuning"):
        wrap(model, processor, method).remove()
    with wrap(model, processor, "pai", layers="image") as guard:
        expected = select_layers(facts["image_layers"]["value"], model.config.text_config.num_hidden_layers)
        assert guard.methods[0].layers == frozenset(expected)


def test_calibrate_keeps_what_it_does_not_measure_again(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path))
    assert run(capsys, "calibrate", "builtin", "--count", "2", "--only", "layers")[0] == 0
    code, out, _ = run(capsys, "calibrate", "builtin", "--count", "2", "--only", "zerotuning", "--json")
    assert code == 0 and set(json.loads(out)["facts"]) == {"image_layers", "zerotuning_factor"}


def test_inspect_shows_the_shipped_profile(capsys):
    code, out, _ = run(capsys, "inspect", "builtin", "--json")
    report = json.loads(out)
    assert code == 0 and report["profile"]["name"] == "builtin"
    verdicts = {row["method"]: row["verdict"] for row in report["methods"]}
    assert verdicts["var"].startswith("ready, but it changes nothing here: none: no layer has sinks")


def make_a_sink(model):
    """Give the first token a massive dimension 7, which its keys show; dimension 11 of all tokens asks for it."""
    decoder, text = model.get_decoder(), model.config.text_config
    size = text.head_dim
    slow = size // 2 - 1  # the channel of a head that turns least from position to position
    with torch.no_grad():
        decoder.embed_tokens.weight[:, 11] = 2.0
        model.model.multi_modal_projector.linear_2.bias[11] = 2.0
        decoder.embed_tokens.weight[text.bos_token_id, 7] = 300.0
        for layer in decoder.layers:
            for projection, dimension in ((layer.self_attn.q_proj, 11), (layer.self_attn.k_proj, 7)):
                projection.weight.view(-1, size, text.hidden_size)[:, slow, dimension] = 4.0


def test_calibrate_writes_a_profile_that_wrap_finds(capsys, tmp_path, monkeypatch):
    """A copy of the built-in model whose first token is massive in one dimension, which draws attention."""
    from vlm_guard import builtin, wrap
    from vlm_guard.families.profiles import find_profile

    model, processor = builtin()
    make_a_sink(model)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path / "profiles"))
    code, out, _ = run(capsys, "calibrate", str(tmp_path / "model"), "--count", "2", "--json")
    profile = json.loads(out)
    assert code == 0 and profile["facts"]["sink_dimensions"]["value"] == [7]
    assert (tmp_path / "profiles" / "model.json").is_file()
    assert find_profile(model.config).name == "model"
    with wrap(model, processor, "var") as guard:
        assert guard.methods[0].prepared.dimensions == (7,)
