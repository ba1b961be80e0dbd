"""What a model's processor lacks is named from its configuration, and agrees with what happens when it is loaded."""

import json
import shutil
from importlib import metadata
from importlib.util import find_spec

import pytest
from packaging.requirements import Requirement

from vlm_guard import hub
from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.eval.run.models import load_model
from vlm_guard.families import processor_needs as needs
from vlm_guard.families.table import model_rows

# Published checkpoints hold the thinkers inside a whole Omni model, which has the processor.
PARTS = {"qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"}
TESTED = [row["model_type"] for row in model_rows() if row["status"].startswith("tested")]
TESTED = [model_type for model_type in TESTED if model_type not in PARTS]
# Written down from the processors' own sources, so that a change in transformers or here is noticed.
VIDEO = {"glm4v", "instructblipvideo", "internvl", "llava_onevision", "molmo2", "qwen2_vl", "qwen2_5_vl", "qwen3_5"}
VIDEO |= {"qwen3_vl", "qwen3_vl_moe", "smolvlm", "video_llava", "gemma4", "glm46v", "glm4v_moe", "minicpmv4_6"}
VIDEO |= {"minimax_m3_vl", "qwen3_5_moe", "video_llama_3"}
OTHER_TORCHVISION = {"cohere2_vision", "lfm2_vl", "llama4", "mistral3"}


def checkpoint(folder, model_type, files=("tokenizer.json", "tokenizer_config.json"), **configs):
    folder.mkdir(exist_ok=True)
    for name in files:
        shutil.copy(BUILTIN_DIR / name, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, content in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("model_type", TESTED)
def test_what_every_tested_family_needs(tmp_path, model_type):
    found = needs.processor_needs(checkpoint(tmp_path / "model", model_type))
    expected = {"torchvision"} if model_type in VIDEO | OTHER_TORCHVISION else set()
    assert set(found.reasons) == expected | ({"num2words"} if model_type == "smolvlm" else set())
    assert found.processor and not found.notes


PROCESSORS = {
    "qwen2_5_vl": ("Qwen2VLImageProcessor", "Qwen2_5_VLProcessor"),
    "qwen3_vl": ("Qwen2VLImageProcessorFast", "Qwen3VLProcessor"),
    "smolvlm": ("SmolVLMImageProcessor", "SmolVLMProcessor"),
    "llama4": ("Llama4ImageProcessorFast", "Llama4Processor"),
    "mistral3": ("PixtralImageProcessor", "PixtralProcessor"),
    "llava": ("CLIPImageProcessor", "LlavaProcessor"),
    "llava_next": ("LlavaNextImageProcessor", "LlavaNextProcessor"),
    "idefics3": ("Idefics3ImageProcessor", "Idefics3Processor"),
}


@pytest.mark.parametrize("model_type", PROCESSORS)
def test_a_processor_loads_exactly_when_nothing_is_missing(tmp_path, model_type):
    """Real classes, whatever is installed: run with and without torchvision this covers both sides."""
    image, processor = PROCESSORS[model_type]
    config = {"image_processor_type": image, "processor_class": processor}
    folder = checkpoint(tmp_path / "model", model_type, preprocessor_config=config)
    found = needs.processor_needs(folder)
    from transformers import AutoProcessor

    if found.missing():
        with pytest.raises((ImportError, ValueError)):
            AutoProcessor.from_pretrained(folder)
        assert found.describe()["to install"].startswith("pip install ")
        with pytest.raises(ValueError, match=r"cannot load .* Its processor lacks \w+ .*`pip install "):
            load_model(folder)
    else:
        assert type(AutoProcessor.from_pretrained(folder)).__name__ == processor
        assert found.describe()["missing"] == "nothing"


def test_tokenizers_without_a_tokenizer_json_need_their_own_library(tmp_path):
    folder = tmp_path / "model"
    for file, packages in (("tokenizer.model", {"sentencepiece", "protobuf"}), ("tiktoken.model", {"tiktoken"})):
        name = checkpoint(folder, "llava", files=())
        (folder / file).write_text("")
        assert set(needs.processor_needs(name).reasons) == packages
        (folder / file).unlink()


def test_code_of_the_checkpoints_own_is_not_guessed_at(tmp_path):
    name = checkpoint(tmp_path / "model", "new", processor_config={"auto_map": {"AutoProcessor": "code.Own"}})
    found = needs.processor_needs(name)
    assert found.processor == "" and "code" in found.notes[0] and "own" in found.describe()["processor"]


def test_an_unknown_processor_is_a_note(tmp_path):
    name = checkpoint(tmp_path / "model", "llava", processor_config={"processor_class": "FutureProcessor"})
    assert "FutureProcessor" in needs.processor_needs(name).notes[0]


@pytest.mark.parametrize(
    ("release", "installed", "line"),
    [
        ("2.13.0+cpu", False, f"pip install 'torchvision==0.28.*' --index-url {needs.CPU_INDEX}"),
        ("2.14.1+cu130", False, "pip install 'torchvision==0.29.*'"),
        ("2.14.1", True, "pip install --force-reinstall --no-deps 'torchvision==0.29.*'"),
    ],
)
def test_torchvision_is_the_release_of_the_torch_that_is_here(monkeypatch, release, installed, line):
    monkeypatch.setattr(needs, "_torch_release", lambda: release)
    monkeypatch.setattr(needs, "_has_metadata", lambda package: installed)
    assert needs.pip_lines(["torchvision", "num2words"]) == [line, "pip install num2words"]


def test_the_rule_for_torchvisions_release_agrees_with_its_own_demand():
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    demanded = next(item for item in map(Requirement, metadata.requires("torchvision")) if item.name == "torch")
    (pin,) = demanded.specifier
    minor, own = pin.version.split(".")[1], metadata.version("torchvision").split(".")[1]
    assert int(own) == int(minor) + 15


@pytest.fixture
def broken_torchvision(tmp_path, monkeypatch):
    """A torchvision built for another torch, which fails when it is imported."""
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.delitem(__import__("sys").modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(str(package.parent))


def test_a_torchvision_that_does_not_fit_is_named(broken_torchvision, tmp_path):
    from vlm_guard.cli.doctor import problems

    with pytest.raises(ImportError, match=r"operator torchvision::nms .* Repair it: `pip install "):
        needs.processor_needs(checkpoint(tmp_path / "model", "qwen2_vl"))
    assert "torchvision::nms" in problems()["torchvision"]
    assert "torchvision::nms" in needs.advice(str(tmp_path / "model"))


def test_the_command_line_says_what_lies_behind_a_failed_import(broken_torchvision, capsys, monkeypatch):
    from vlm_guard import cli

    def failing(*_):
        raise ImportError("Could not import module 'PreTrainedModel'.")

    monkeypatch.setattr(cli, "build_app", failing)
    with pytest.raises(SystemExit) as finished:
        cli.main([])
    printed = capsys.readouterr().err
    assert finished.value.code == 2 and printed.startswith("error: torchvision is installed")
    assert "torchvision::nms" in printed and "pip install" in printed and "or `pip uninstall torchvision`" in printed
    assert printed.endswith("What failed on it: Could not import module 'PreTrainedModel'.\n")


def test_a_problem_is_exit_code_1_of_the_doctor(broken_torchvision, capsys):
    from vlm_guard import cli

    with pytest.raises(SystemExit) as finished:
        cli.main(["doctor", "--json"])
    assert finished.value.code == 1 and "torchvision" in json.loads(capsys.readouterr().out)["problems"]


# -- the hub --------------------------------------------------------------------------------------------------


def test_only_configurations_are_fetched(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}
    folder = checkpoint(tmp_path / "model", "smolvlm")

    def fetch(name, **options):
        asked[name] = options
        return folder

    monkeypatch.setattr(needs, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision: ["config.json", "tokenizer.json"])
    assert set(needs.processor_needs("someone/model", "main").reasons) == {"torchvision", "num2words"}
    assert asked == {
        "someone/model": {"revision": "main", "allow_patterns": list(needs.CONFIGS), "local_files_only": False}
    }

    def offline(name, revision):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    assert "tokenizer was not examined" in needs.processor_needs("someone/model").notes[0]


def test_a_hub_that_cannot_be_read_is_an_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.hub_answers.cache_clear()
    with pytest.raises(ValueError, match=r"'someone/nothing' cannot be read: .* give the folder .* HF_HUB_OFFLINE=1"):
        needs.processor_needs("someone/nothing")
    with pytest.raises(ValueError, match=r"cannot be read: .* Give a Hugging Face id \(OWNER/NAME\)"):
        needs.processor_needs("no name")
    hub.hub_answers.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once_and_told_in_one_line(monkeypatch, caplog, capsys):
    from vlm_guard import cli

    asked = []

    class Silent:
        def head(self, address, timeout):
            asked.append(timeout)
            raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.get_session", Silent)
    hub.hub_answers.cache_clear()
    try:
        with pytest.raises(SystemExit) as finished:
            cli.main(["inspect", "someone/nothing"])
    finally:
        hub.hub_answers.cache_clear()
    printed = capsys.readouterr()
    assert finished.value.code == 2 and len(asked) == 1 and "Retrying" not in caplog.text + printed.err
    assert printed.err.startswith("error: cannot ") and printed.err.count("\n") == 1 and "--model FOLDER" in printed.err


@pytest.mark.parametrize(("given", "meant"), [("smoll", "smol"), ("SMOL", "smol"), ("bultin", "builtin")])
def test_a_misspelt_model_is_asked_back_before_the_hub_is(given, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        needs.refuse_missing_folder(given)
    needs.refuse_missing_folder("gpt2")


# -- doctor and the command line ------------------------------------------------------------------------------


def test_doctor_names_what_a_model_lacks(tmp_path, capsys):
    from vlm_guard import cli

    name = checkpoint(tmp_path / "model", "smolvlm")
    with pytest.raises(SystemExit) as finished:
        cli.main(["doctor", name, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert finished.value.code == ("to install" in report[name])
    assert report[name]["processor"] == "SmolVLMProcessor"
    assert report[name]["models of this type"] == "tested on random weights"
    assert report[name]["num2words"].startswith("for its processor: ")


def test_doctor_says_that_the_built_in_model_lacks_nothing(capsys):
    from vlm_guard import cli

    with pytest.raises(SystemExit) as finished:
        cli.main(["doctor", "builtin", "--json"])
    assert finished.value.code == 0 and json.loads(capsys.readouterr().out)["builtin"]["missing"] == "nothing"


def test_doctor_answers_for_a_model_type_without_the_hub(tmp_path, capsys, monkeypatch):
    import huggingface_hub

    from vlm_guard.cli.doctor import examine_model

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    found = examine_model("qwen2_5_vl")
    assert found["models of this type"] == "tested on random weights"
    assert found["processor"] == "Qwen2_5_VLProcessor" and found["torchvision"].startswith("for its video processor")
    assert "only the type was looked at" in found["note 1"]
    refused = next(row["model_type"] for row in model_rows() if row["status"] == "refused")
    assert examine_model(refused)["models of this type"] == "refused" and examine_model(refused)["about them"]
    with pytest.raises(ValueError, match=r"'qwen25_vl' is no folder and no model type\. Did you mean 'qwen2_5_vl'"):
        examine_model("qwen25_vl")


def test_inspect_goes_on_without_a_processor(tmp_path, capsys, monkeypatch):
    from vlm_guard import cli

    monkeypatch.setattr("vlm_guard.calibration.inspection.method_names", lambda: ["pai", "icd"])

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(BUILTIN_DIR / name)
    with pytest.raises(SystemExit) as finished:
        cli.main(["inspect", str(tmp_path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert finished.value.code == 0 and report["model"]["processor"].startswith("left out, because it cannot be loaded")
    verdicts = {row["method"]: row["verdict"] for row in report["methods"]}
    assert verdicts["pai"] == "ready" and "needs the model's processor" in verdicts["icd"]
    with pytest.raises(SystemExit) as finished:
        cli.main(["inspect", str(tmp_path), "--heads"])
    assert finished.value.code == 2 and "cannot load" in capsys.readouterr().err


def test_doctor_knows_the_other_project_of_this_name(tmp_path, monkeypatch):
    from vlm_guard.cli.doctor import problems

    assert "vlm-guard" not in problems(), "the other project is not installed where the tests run"
    information = tmp_path / "vlm_guard-0.2.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vlm-guard\nVersion: 0.2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "unrelated project" in problems()["vlm-guard"]


@pytest.mark.parametrize("name", ["./missing/folder", "../missing", "/nowhere/model", "a/b/c"])
def test_a_missing_folder_is_called_that(name):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}; a model is 'builtin'"):
        load_model(name)
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}; a model is 'builtin'"):
        needs.processor_needs(name)
