import io
import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest

gr = pytest.importorskip("gradio")

from PIL import Image  # noqa: E402

from vlm_guard import environment  # noqa: E402
from vlm_guard.demo.app import build_app, launch_options  # noqa: E402
from vlm_guard.demo.context import DemoContext  # noqa: E402
from vlm_guard.demo.method_options import OptionControl  # noqa: E402
from vlm_guard.demo.panels import header_html, picture_html  # noqa: E402
from vlm_guard.demo.uploads import MAX_UPLOAD_BYTES  # noqa: E402
from vlm_guard.demo.wiring import INTERNAL, option_component, told  # noqa: E402


@pytest.fixture(scope="module")
def app(answering_model, scenes_folder):
    return build_app(answering_model.model, answering_model.processor, str(scenes_folder))


def test_building_serves_nothing_and_sends_nothing(app):
    assert isinstance(app, gr.Blocks) and not app.is_running
    assert app.analytics_enabled is False


def test_it_is_served_to_this_machine_only():
    options = launch_options(7000)
    assert options["server_name"] == "127.0.0.1" and options["server_port"] == 7000
    assert options["share"] is False and options["allowed_paths"] == [] and options["mcp_server"] is False
    assert options["max_file_size"] == MAX_UPLOAD_BYTES
    assert all("google" not in str(font).lower() for font in options["theme"]._font + options["theme"]._font_mono)


def test_one_generation_at_a_time_and_a_bounded_queue(app):
    using_model = [fn for fn in app.fns.values() if fn.concurrency_id == "model"]
    assert len(using_model) >= 6 and {fn.concurrency_limit for fn in using_model} == {1}
    assert app._queue.max_size is not None and app._queue.max_size <= 64


def test_no_callback_takes_a_path_and_uploads_come_as_bytes(app):
    uploads = [block for block in app.blocks.values() if isinstance(block, gr.UploadButton)]
    assert [block.type for block in uploads] == ["binary"]
    taking_files = (gr.File, gr.Image, gr.Gallery, gr.FileExplorer, gr.Audio, gr.Video)
    assert not [block for block in app.blocks.values() if isinstance(block, taking_files)]


def test_nothing_of_this_machine_is_in_the_page(app, scenes_folder):
    config = json.dumps(app.get_config_file(), default=str)
    assert str(scenes_folder.parent) not in config


def test_a_folders_path_is_not_shown(answering_model, pictures, monkeypatch):
    monkeypatch.setattr(answering_model.model.config, "_name_or_path", "/home/someone/models/my-model/")
    context = DemoContext(model=answering_model, browser=pictures)
    assert context.model_name == "my-model" and "someone" not in header_html(context.model_line)
    monkeypatch.setattr(answering_model.model.config, "_name_or_path", "llava-hf/llava-1.5-7b-hf")
    assert context.model_name == "llava-hf/llava-1.5-7b-hf"


def test_a_model_that_cannot_be_guarded_is_refused_when_built(scenes_folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    with pytest.raises(ValueError, match="it is a text model"):
        build_app(LlamaForCausalLM(tiny), None, str(scenes_folder))


def test_the_picture_has_an_alt_text_and_its_truth_folded_away(pictures):
    shown = picture_html(pictures.first(), 12)
    assert f'alt="{pictures.first().alt_text}"' in shown and "<details>" in shown and "1 of 12" in shown


def test_errors_of_ours_are_told_and_others_are_not(caplog):
    assert told(ValueError("option share is 7")) == "option share is 7"
    assert told(RuntimeError("CUDA error in /home/someone/secret.py")) == INTERNAL
    assert "secret.py" in caplog.text


@pytest.mark.parametrize(
    ("kind", "default", "component"),
    [
        ("slider", 0.5, gr.Slider),
        ("choice", "up", gr.Dropdown),
        ("switch", True, gr.Checkbox),
        ("text", "2-", gr.Textbox),
        ("number", None, gr.Textbox),
    ],
)
def test_options_become_components(kind, default, component):
    control = OptionControl(
        method="m", name="some_option", kind=kind, default=default, help="what it is", low=0, high=1, step=0.1,
        choices=("up", "down"),
    )  # fmt: skip
    made = option_component(control, default)
    assert isinstance(made, component) and made.interactive
    assert made.label == "some option" and made.info == "what it is"


def test_the_command_serves_the_page(monkeypatch, scenes_folder, capsys):
    from vlm_guard.cli import main

    served = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: served.update(options, app=self))
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda self: None)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--port", "7999", "--data", str(scenes_folder)])
    assert ended.value.code == 0
    assert served["server_port"] == 7999 and served["server_name"] == "127.0.0.1" and served["share"] is False
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "loading builtin ..." and lines[1].startswith("looking for an example")
    assert lines[-1].startswith("the page is at http://127.0.0.1:7999") and served["quiet"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "allowed: 1 to 65535"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--data", "scenes:nonsense"], "nonsense"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_wrong_use_of_the_command_is_explained(arguments, words, capsys):
    from vlm_guard.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    import importlib.util

    from vlm_guard.cli import main

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    # A checkout's package is not on the index.
    assert ended.value.code == 2 and "pip install -c constraints.txt -e '.[demo]'" in capsys.readouterr().err
    monkeypatch.setattr(environment, "__file__", "/usr/lib/python3/site-packages/vlm_guard/environment.py")
    assert environment.install_line("plot") == "pip install 'vlm-guard-hf[plot]'"


def test_an_uploaded_picture_is_a_picture_of_which_nothing_is_known():
    from vlm_guard.demo.wiring import _sent

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(buffer, "PNG")
    sent = _sent(buffer.getvalue())
    assert sent.image.size == (30, 20) and sent.objects is None and sent.image_id is None
    with pytest.raises(ValueError, match="empty"):
        _sent(None)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "pyproject.toml", "../../../etc/passwd", "vlm_guard/builtin/config.json"]
)
def test_files_of_this_machine_are_not_served(address, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}gradio_api/file={path}")
    assert refused.value.code in (403, 404)


def test_uploads_are_limited_before_they_are_read(address):
    import httpx

    files = {"files": ("large.png", b"x" * (MAX_UPLOAD_BYTES + 1), "image/png")}
    assert httpx.post(f"{address}gradio_api/upload", files=files).status_code == 413


def test_the_page_asks_no_other_server_for_anything(address):
    """Fonts, styles and scripts come from here; the header's links for social previews are not fetched."""
    page = urllib.request.urlopen(address).read().decode()
    fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)\"", page)
    assert [url for url in fetched if "127.0.0.1" not in url] == []


def test_the_opening_example_is_the_first_picture_where_none_helps(context, monkeypatch):
    import vlm_guard.demo.context as module

    monkeypatch.setattr(module, "OPENING_TRIES", 2)
    context.find_opening("Please describe this image in detail.", ["lqcd"])  # changes nothing about plain requests
    example, note = context.opening
    assert example.picture.image_id == context.browser.ids[0] == context.first_picture.image_id
    assert "Looked at 2 pictures" in note and "None was a clear gain" in note
    context.opening = None
    monkeypatch.setattr(module, "OPENING_SECONDS", 0.0)
    context.find_opening("Please describe this image in detail.", ["lqcd"])
    assert context.opening is None, "there was no time for an answer"


def test_no_opening_example_where_the_method_cannot_be_applied(context):
    context.find_opening("Please describe this image in detail.", ["nope"])
    assert context.opening is None and context.first_picture.image_id == context.browser.ids[0]
