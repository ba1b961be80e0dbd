"""Mistakes in the settings of a run are found together, before torch or a model is loaded."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from vlm_guard.cli import main
from vlm_guard.eval.run.early_checks import Mistakes, refuse_mistakes
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.method import index


def problems(out=None, **given) -> list[str]:
    with pytest.raises(Mistakes) as found:
        refuse_mistakes(RunSettings(**given), out)
    return found.value.problems


def test_all_mistakes_are_said_at_once_without_torch(tmp_path):
    flags = "--method none --method vcdd --method pai:gian=0.4 --method vcd:strength=99 --model ./nowhere --dtype half"
    more = f"--data coco:{tmp_path}/no --image-list {tmp_path}/list --protocol opera-pope --chair-mode wordnt"
    code = f"""
import sys
from vlm_guard.cli import main
try:
    main({["eval", *flags.split(), *more.split(), "--out", str(tmp_path / "out")]!r})
finally:
    print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout.strip() == "[]" and not (tmp_path / "out").exists()
    lines = done.stderr.splitlines()
    for said in (
        "there is no folder ./nowhere",
        "dtype is 'half'",
        "unknown method 'vcdd'. Did you mean 'vcd'",
        "pai has no option 'gian'. Did you mean 'gain'?",
        "vcd: option strength is 99.0; allowed: 0.0 to 10.0",
        "--protocol opera-pope needs --questions",
        f"there is no folder {tmp_path}/no",
        "the CHAIR mode is 'wordnt'",
        f"there is no image list {tmp_path}/list",
    ):
        assert sum(said in line for line in lines) == 1, said
    assert len(lines) == 9 and all(line.startswith("error: ") for line in lines)


def test_methods_are_described_and_their_names_refused_without_torch(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    code = f"""
import sys
from vlm_guard.cli import main
commands = (["generate", {str(tmp_path / "a.png")!r}, "?"], ["sweep", "--out", "x"], ["verify"], ["bench", "generate"],
            ["tune", "builtin", "--data", "scenes:common"])
for arguments in (["methods", "opera", "--json"], *([*command, "--method", "vcdd"] for command in commands)):
    try:
        main(arguments)
    except SystemExit as stopped:
        print(stopped.code, [name for name in ("torch", "transformers") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    described = json.loads(done.stdout)
    assert described["title"] == "OPERA" and described["options"][0]["range"] == [0.0, 10.0]
    first, *others = done.stderr.splitlines()
    assert first == "0 []" and others[1::2] == ["2 []"] * 5
    assert all("unknown method 'vcdd'. Did you mean 'vcd'" in error for error in others[::2])


@pytest.mark.parametrize("command", [["sweep", "--out", "x"], ["verify"]], ids=str)
def test_commands_that_choose_settings_take_names_only(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--method", "pai:gain=0.4"])
    assert stopped.value.code == 2 and "give a name, no settings" in capsys.readouterr().err


def test_a_method_that_the_index_does_not_know_as_it_is_describes_itself(monkeypatch):
    listed = index.described_method("none")
    monkeypatch.setattr(index, "_digest", lambda name: "changed")
    assert index.described_method("none") == listed


def test_a_run_without_mistakes_passes(tmp_path):
    refuse_mistakes(RunSettings(methods=["none", "auto", "pai:gain=0.4,gate=entropy>0.5+var"]), tmp_path / "new")
    refuse_mistakes(RunSettings(options={"vcd.strength": 2, "gate": "max_p<0.7"}, methods=["none", "vcd"]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"options": {"var.move_fraction": 0.5}, "methods": ["none", "vcd"]}, "fits no method of this run"),
        ({"options": {"strength": 1}, "methods": ["vcd", "icd"]}, "say which method"),
        ({"methods": ["vcd:strength=much"]}, "must be a number, given 'much'"),
        ({"methods": ["none", "none"]}, "each only once"),
        ({"methods": ["no_file.py:strength=1"]}, "there is no file no_file.py"),
        ({"data": "scenes:commn"}, "commn"),
        ({"data": "coco:."}, "needs MSCOCO annotations in pairs"),
        ({"data": "folder:.", "tasks": ["pope"]}, "cannot be asked about"),
        ({"questions": ["no.json"], "tasks": ["pope"]}, "no.json"),
        ({"endpoint": "htp:/x", "methods": ["strict"]}, "no address of a server"),
    ],
)
def test_a_mistake_is_found(given, said):
    (problem,) = problems(**given)
    assert said in problem


def test_a_model_that_can_be_had_nowhere_is_refused(monkeypatch):
    monkeypatch.setattr("vlm_guard.eval.run.early_checks.hub_answers", lambda: False)
    (problem,) = problems(model="nobody/nothing-7b")
    assert "nobody/nothing-7b" in problem and "--model FOLDER" in problem and "HF_HUB_OFFLINE=1" in problem
    monkeypatch.setattr("vlm_guard.eval.run.early_checks.hub_answers", lambda: True)
    refuse_mistakes(RunSettings(model="nobody/nothing-7b"))


def test_a_folder_of_another_run_is_refused(tmp_path):
    kept = {
        "decoding": {"num_beams": 1, "do_sample": False, "seed": 0},
        "tasks": {"pope": {}},
        "model": {"name": "smol"},
    }
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "run.json").write_text(json.dumps({"fingerprint": kept}), encoding="utf-8")
    refuse_mistakes(RunSettings(model="smol", tasks=["pope"]), tmp_path)
    refuse_mistakes(RunSettings(model="builtin", tasks=["pope"], resume=False, methods=["none"]), tmp_path)
    for change, said in (
        ({"decoding": {"num_beams": 5}}, "decoding.num_beams was 1 and is now 5"),
        ({"model": "builtin"}, "model.name was 'smol' and is now 'builtin'"),
        ({"tasks": ["chair"]}, "tasks was ['pope'] and is now ['chair']"),
    ):
        (problem,) = problems(tmp_path, **{"model": "smol", "tasks": ["pope"], **change})
        assert said in problem and "Give another --out" in problem
