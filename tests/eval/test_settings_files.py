"""Settings files of strangers: what YAML allows and this program does not, and values of wrong types."""

import time

import pytest

from vlm_guard.cli import main
from vlm_guard.eval.run.settings import parse_methods, read_settings
from vlm_guard.method.registry import make_method

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)


def refused(path, text, flags=None):
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ValueError) as raised:
        read_settings(path, flags or {})
    message = str(raised.value)
    assert path.name in message and "\n" not in message and len(message) < 900
    return message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 2: the alias"),
        ("count: &n 3\nlimit: *n\n", "line 2: the alias"),
        ("pope: &p {parser: vcd}\nx:\n  <<: *p\n", "alias"),
        ("a: " + "[" * 10_000, "nested too deeply"),
        ("count: 3\ncount: 4\n", "line 2: the key 'count' stands twice"),
        ("pope: {parser: vcd, parser: pope}\n", "stands twice"),
        ("model: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("? [1, 2]\n: 3\n", "unhashable"),
        ("3: 4\n", "the setting 3 has a name that is no text"),
        ("seed: " + "9" * 5000, "digits"),
        ("model: 2020-99-99\n", "no valid YAML"),
        ("model: 'a\n", "line "),
        ("model: \x00\n", "no valid YAML"),
        ("x" * 1000 + ": 3\n", "there is no such setting"),
        ("# " + "x" * 2**20, "larger than"),
        ("- a\n", "must hold settings"),
        ("text", "must hold settings"),
    ],
)
def test_what_yaml_allows_and_settings_do_not(tmp_path, text, words):
    begin = time.monotonic()
    assert words in refused(tmp_path / "run.yaml", text)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "text",
    [
        "strict: 1",
        "strict: 'yes'",
        "resume: 0",
        "count: true",
        "count: 2.5",
        "count: '3'",
        "batch_size: [1]",
        "seed: 1.0",
        "model: 3",
        "model: [builtin]",
        "methods: var",
        "methods: [var, 3]",
        "tasks: chair",
        "tasks: {chair: 1}",
        "options: [var.layers]",
        "decoding: greedy",
        "decoding: {temperature: '0.5'}",
        "decoding: {temperature: .inf}",
        "decoding: {temperature: .nan}",
        "decoding: {do_sample: 1}",
        "pope: strict",
        "pope: {per_image: true}",
        "pope: {strategies: random}",
        "pope: {questions: 3}",
        "image_list: 3",
        "prompt: !!binary aGk=",
    ],
)
def test_values_of_wrong_types_are_refused_by_name(tmp_path, text):
    message = refused(tmp_path / "run.yaml", text + "\n")
    assert text.partition(":")[0] in message and "given" in message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("batchsize: 3", "did you mean 'batch_size'"),
        ("pope: {parsr: vcd}", "did you mean 'parser'"),
        ("decoding: {temprature: 1.0}", "did you mean 'temperature'"),
        ("zzz: 1", "allowed settings: model"),
    ],
)
def test_unknown_settings_come_with_the_known_ones(tmp_path, text, hint):
    assert hint in refused(tmp_path / "run.yaml", text)


def test_what_is_right_is_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfmodel: builtin\r\nstrict: yes\r\ncount: 3\r\nimage_list: ids.txt\r\n"
        b"decoding: {do_sample: true, temperature: 1e-1, top_p: 1}\r\npope: {questions: [q.json]}\r\n"
    )
    settings = read_settings(path, {"pope.parser": "vcd", "seed": 3, "decoding.num_beams": 1})
    assert (settings.strict, settings.count, settings.seed, settings.pope.parser) == (True, 3, 3, "vcd")
    assert (settings.decoding.temperature, settings.decoding.top_p) == (0.1, 1.0)
    assert settings.image_list.name == "ids.txt" and settings.pope.questions[0].name == "q.json"
    path.write_text("")
    assert read_settings(path, {}).model == "builtin"


def test_a_flag_does_not_hide_a_wrong_value_of_the_file(tmp_path):
    assert "pope: " in refused(tmp_path / "run.yaml", "pope: 3", {"pope.parser": "vcd"})
    (tmp_path / "run.yaml").write_text("options: [1]")
    options = {"var.layers": "all"}
    assert read_settings(tmp_path / "run.yaml", {"options": options}).options == options  # the flag takes its place


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("var", {"layers": 3}, "option layers must be text"),
        ("var", {"layers": [1, 2]}, "option layers must be text"),
        ("var", {"move_fraction": True}, "must be a number"),
        ("var", {"move_fraction": [0.5]}, "must be a number"),
        ("vcd", {"noise_step": 1.5}, "option noise_step must be a whole number"),
        ("vcd", {"noise_step": True}, "whole number"),
        ("vcd", {"noise_step": "1.5"}, "whole number"),
        ("vcd", {"strength": None}, "must be a number"),
        ("gift", {"content_words": 3}, "must be text or a function"),
        ("act", {"heads": 7}, "option heads must be text"),
    ],
)
def test_options_have_the_type_that_their_method_declares(method, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make_method(method, options)


def test_every_option_takes_its_default_and_refuses_a_stranger():
    """For all methods: the declared default passes its own check, and an object of no known type does not."""
    from dataclasses import fields

    from vlm_guard.method.option_types import accepted_types
    from vlm_guard.method.registry import method_class, method_names

    for name in method_names():
        cls = method_class(name)
        cls()
        for item in fields(cls):
            assert accepted_types(cls, item), f"{name}.{item.name} takes anything"
            with pytest.raises((TypeError, ValueError)):
                make_method(name, {item.name: object()})


def test_whole_numbers_are_taken_where_fractions_are():
    assert make_method("vcd", {"strength": 2}).strength == 2
    assert make_method("vcd", {"noise_step": "300"}).noise_step == 300


def test_the_command_refuses_a_wrong_option_before_it_reads_anything(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("methods: [none, var]\noptions: {var.layers: 3}\ndata: scenes:common\ncount: 2\n")
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--config", str(path), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "option layers must be text" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_methods_as_text_are_checked_too():
    with pytest.raises(ValueError, match="whole number"):
        parse_methods(["vcd:noise_step=1.5"], {})
