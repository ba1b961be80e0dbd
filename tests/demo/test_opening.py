"""What the page opens with: a setting chosen on other scenes, crowded scenes among the examples, a free port."""

import json
import socket
from pathlib import Path

import pytest
from PIL import Image

from vlm_guard import cli
from vlm_guard.builtin_model import builtin
from vlm_guard.demo.method_options import setting_text
from vlm_guard.demo.opening import opening_setting
from vlm_guard.demo.pictures import Picture, open_pictures
from vlm_guard.demo.ports import FIRST, LAST, free_port
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.profiles import Fact, Profile, find_profile

RESULTS = Path(__file__).resolve().parents[2] / "eval" / "results"


def read(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def setting_of(name):
    """The opening setting of the built-in model, as its profile has it, or as if there were no profile."""
    model = builtin()[0]
    architecture = describe_architecture(model)
    return opening_setting(architecture, find_profile(model.config) if name == "builtin" else None)


def test_the_setting_is_the_sweeps_choice():
    sweep = read("sweep_common_32.json")
    points = [point for method in sweep["methods"] for point in method["points"]]
    kept = [point for point in points if point["recall_change"] >= -sweep["recall_slack"]]
    best = min(kept, key=lambda point: (point["chair_i"], len(point["label"])))
    setting = setting_of("builtin")
    assert best["label"] == setting_text(setting.methods, setting.options)


@pytest.mark.parametrize("split", ["common", "broken"])
def test_the_setting_helps_on_scenes_it_was_not_chosen_on(split):
    setting = setting_of("builtin")
    label = setting_text(setting.methods, setting.options)
    found = next(entry for entry in read(f"tuned_{split}.json")["methods"] if entry["label"] == label)
    change = found["difference_to_baseline"]
    assert change["chair_i"]["high"] < 0 <= change["recall"]["high"]


def test_other_models_open_with_the_default_of_auto():
    setting = setting_of("another")
    assert setting.methods == ["pai"] and setting.options == {"pai.gain": 0.3, "pai.guidance": 1.0}
    nothing = Profile(name="x", match={}, facts={"auto": Fact(value="none", source="calibrated")})
    assert opening_setting(describe_architecture(builtin()[0]), nothing).methods == ["pai"]


def test_the_settings_are_written_as_wrap_takes_them():
    assert setting_text(["pai", "var"], {"pai.gain": 0.4, "vcd.strength": 9}) == "pai:gain=0.4+var"
    assert setting_text(["pai"], {"pai.gain": 0.2}) == "pai", "the default is not written"
    assert setting_text(["nope"], {}) == "nope"


def test_crowded_scenes_are_among_the_examples():
    browser = open_pictures()
    numbers = browser.ids
    assert numbers[:6] == [1, 2, 3, 4, 201, 5] and len(numbers) == len(set(numbers)) == 250
    crowded = browser.picture(201)
    assert crowded.title == "image 201 (scenes:crowded, image 1)" and len(crowded.objects) >= 5
    assert browser.picture(7).title == "scenes:broken, image 7"
    assert browser.by_text("201").image_id == 201 and browser.questions(crowded)
    alone = open_pictures("scenes:crowded").picture(1)
    assert alone.image.tobytes() == crowded.image.tobytes() and alone.objects == crowded.objects


def test_a_photograph_is_noted_and_a_scene_is_not(context):
    assert context.note_about(context.browser.first()) == ""
    sent = Picture(image=Image.new("RGB", (300, 200)), title="Your picture")
    assert context.note_about(sent).startswith("The built-in model knows 80 drawn things only")


def test_a_busy_port_is_told_before_the_model_is_loaded(capsys):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match="in use by another program"):
            free_port(port)
        with pytest.raises(SystemExit) as ended:
            cli.main(["demo", "--port", str(port), "--model", "./no/such/model"])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and f"error: port {port} is in use by another program; give another" in error
    assert FIRST <= free_port() <= LAST
    with pytest.raises(ValueError, match="allowed: 1 to 65535"):
        free_port(70000)
