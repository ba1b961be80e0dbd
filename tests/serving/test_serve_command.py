"""What `vlm-guard serve` says before vLLM starts, and what it starts."""

import os
import sys
from types import SimpleNamespace

import pytest

from vlm_guard import builtin, cli
from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.serving.vllm import versions
from vlm_guard.serving.vllm.declaration import ENVIRONMENT, Declaration
from vlm_guard.serving.vllm.start.chat_template import served_chat_template
from vlm_guard.serving.vllm.start.checkpoint_names import read_as
from vlm_guard.serving.vllm.start.devices import DEVICES
from vlm_guard.serving.vllm.start.engine import RUNNER
from vlm_guard.serving.vllm.start.plugin import register


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["serve", *arguments])
    return stopped.value.code, capsys.readouterr().err.strip()


@pytest.fixture
def tested(monkeypatch):
    """As if a tested vLLM were installed; `started` has what would be started."""
    started = []
    monkeypatch.setattr("vlm_guard.serving.vllm.versions.installed_version", lambda: "0.32.0")
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append(arguments))
    monkeypatch.setattr("vlm_guard.serving.vllm.start.engine.this_device", lambda: DEVICES["cpu"])
    monkeypatch.setenv(ENVIRONMENT, "")
    monkeypatch.setenv(RUNNER, "0")
    return started


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ("dola", "error: dola cannot be served inside vLLM"),
        ("nosuch", "error: unknown method 'nosuch'"),
        ("pai;act+m3id", "error: act reads a prompt in one step"),
        ("softpag:heads=99:0", "error: "),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(capsys, tested, methods, reason):
    code, said = run(capsys, "builtin", "--methods", methods)
    assert code == 2 and said.startswith(reason) and "\n" not in said and not tested


def test_without_a_tested_vllm_it_says_which_one(capsys, monkeypatch):
    monkeypatch.setattr(versions, "installed_version", lambda: None)
    code, said = run(capsys, "builtin", "--methods", "pai")
    assert code == 2 and "this needs vLLM 0.32.x" in said and "vlm-guard-hf[vllm]" in said and "docs/serving.md" in said


def test_a_folder_that_is_not_there(capsys, tested):
    code, said = run(capsys, "./nowhere", "--methods", "pai")
    assert code == 2 and "there is no folder ./nowhere" in said


def test_vllm_is_started_with_the_guards_and_the_other_flags(capsys, tested):
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            [
                "serve",
                "builtin",
                "--methods",
                "pai;strict=pai:gain=0.5",
                "--default",
                "strict",
                "--port",
                "8123",
                "-tp",
                "2",
            ]
        )
    assert stopped.value.code == 0
    (arguments,) = tested
    assert arguments[:5] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(BUILTIN_DIR)]
    assert arguments[-4:] == ["--port", "8123", "-tp", "2"]
    for flag in (
        "--scheduler-cls",
        "--no-async-scheduling",
        "--logits-processors",
        "--middleware",
        "--served-model-name",
    ):
        assert flag in arguments
    declared = Declaration.of_environment()
    assert list(declared.offers) == ["pai", "strict"] and declared.default == "strict"
    assert arguments[arguments.index("--chat-template") + 1].startswith("{{ bos_token }}")


def test_the_served_chat_template_gives_the_ids_of_the_processor():
    _, processor = builtin()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    rendered = processor.apply_chat_template(
        messages, chat_template=served_chat_template(processor), add_generation_prompt=True, bos_token="<s>"
    )
    ids = processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    plain = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert ids == processor.tokenizer(plain)["input_ids"] and ids[0] == processor.tokenizer.bos_token_id


def test_a_template_with_the_begin_token_stays_as_it_is():
    _, processor = builtin()
    tokenizer = processor.tokenizer
    assert served_chat_template(SimpleNamespace(chat_template="{{ bos_token }}x", tokenizer=tokenizer)) is None
    assert served_chat_template(SimpleNamespace(chat_template=None, tokenizer=tokenizer)) is None

    class WithoutBegin:
        bos_token, bos_token_id = "<s>", 1

        def __call__(self, text):
            return {"input_ids": [5]}

    assert served_chat_template(SimpleNamespace(chat_template="x", tokenizer=WithoutBegin())) is None


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("vision_tower.embeddings.class_embedding", "vision_tower.vision_model.embeddings.class_embedding"),
        ("model.vision_tower.encoder.layers.0.x", "vision_tower.vision_model.encoder.layers.0.x"),
        ("vision_tower.vision_model.encoder.layers.0.x", "vision_tower.vision_model.encoder.layers.0.x"),
        ("vision_tower.transformer.layers.0.x", "vision_tower.transformer.layers.0.x"),
        ("language_model.model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
    ],
)
def test_names_of_towers_are_read_in_both_forms(name, read):
    assert read_as(name) == read


def test_the_plug_in_does_nothing_where_nothing_is_declared(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr("vlm_guard.serving.vllm.versions.installed_version", lambda: "0.1")
    register()
