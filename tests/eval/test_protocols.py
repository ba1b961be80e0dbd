"""Published protocols by name: what they set, what they need, and what results say of a run that does otherwise."""

import inspect
import json
import re
from pathlib import Path

import pytest
from run_records import careful, write_run
from small_coco import make_coco_folder

from vlm_guard.cli import build_app, main
from vlm_guard.eval.data.datasets import hash_lines, open_dataset
from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.run.protocols import PROTOCOLS, deviations, find_protocol
from vlm_guard.eval.run.settings import RunSettings, read_settings
from vlm_guard.eval.run.setup import open_data

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = Path(__file__).parents[3] / "shared" / "data"


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


@pytest.fixture
def coco(tmp_path) -> Path:
    return make_coco_folder(tmp_path / "coco", images=4)


def test_a_protocol_stands_below_the_file_and_the_options(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("protocol: vcd-pope\nparser: opera\npope: {per_image: 4}\n", encoding="utf-8")
    settings = read_settings(config, {"decoding.temperature": 0.5, "data": "coco:x"})
    assert settings.tasks == ["pope"] and settings.split == "val2014" and settings.template.startswith("A chat")
    assert (settings.pope.parser, settings.pope.per_image, settings.pope.suffix) == ("opera", 4, "one_word")
    assert settings.pope.max_new_tokens == 1024
    assert (settings.decoding.do_sample, settings.decoding.temperature) == (True, 0.5)
    assert RunSettings(protocol="pai-chair-500").chair.prompt == "Please help me describe the image in detail."
    assert RunSettings(protocol="pai-chair-500", data="scenes:common").split is None, "scenes name their split"
    settings = read_settings(
        None, {"protocol": "opera-chair-500", "chair.max_new_tokens": 64, "tasks": ["chair", "pope"]}
    )
    assert settings.chair_mode == "wordnet" and settings.chair.max_new_tokens == 64 and len(settings.tasks) == 2


def test_an_unknown_protocol_is_named_with_the_nearest(tmp_path, capsys):
    code, _, err = call(capsys, "eval", "--protocol", "opera-chair", "--out", tmp_path / "run")
    assert code == 2 and "no protocol 'opera-chair'. Did you mean 'opera-chair-500'? There are" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_every_protocol_is_valid_and_says_what_it_needs(protocol, coco, capsys, tmp_path):
    settings = RunSettings(protocol=protocol.name, data=f"coco:{coco}")
    ids = {number: None for number in range(protocol.images)}
    changes = deviations(protocol, settings, ids, protocol.images_sha256 or "another")
    assert changes == [], "its own settings are no change"
    if protocol.images_sha256 is not None:
        assert deviations(protocol, settings, ids, "another") == ["other images than the published list"]
    with pytest.raises(ValueError, match=f"^--protocol {protocol.name} needs --"):
        open_data(settings)
    code, printed, _ = call(capsys, "protocols", protocol.name)
    assert code == 0 and protocol.source[:30] in printed and "give as well" in printed


def test_protocols_are_listed_for_people_and_programs(capsys):
    code, printed, _ = call(capsys, "protocols")
    assert code == 0 and all(protocol.name in printed for protocol in PROTOCOLS)
    assert all(len(line) <= 80 for line in printed.splitlines())
    listed = json.loads(call(capsys, "protocols", "--json")[1])
    assert [item["name"] for item in listed] == [protocol.name for protocol in PROTOCOLS]


def test_a_run_by_protocol_says_what_it_did_otherwise(coco, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text("3\n1\n")
    command = ("eval", "--protocol", "shield-chair-500", "--data", f"coco:{coco}", "--image-list", listed)
    options = ("--split", "test", "--max-new-tokens", 4, "--device", "cpu", "--method", "none", "--resamples", 100)
    code, printed, err = call(capsys, *command, *options, "--out", tmp_path / "run")
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["protocol"]["changes"] == [
        "split is 'test' instead of 'val2014'",
        "chair.max_new_tokens is 4 instead of 512",
        "2 images instead of 500",
    ]
    shown = " ".join(printed.split())
    assert "protocol shield-chair-500, but split is 'test' instead of 'val2014'; chair.max_new_tokens is 4" in shown
    code, printed, _ = call(capsys, "table", tmp_path / "run")
    assert "; protocol shield-chair-500, but split is 'test'" in printed


def test_runs_of_different_protocols_are_noted_when_compared(coco, tmp_path):
    published = {"name": "opera-chair-500", "source": "x", "changes": []}
    write_run(tmp_path / "first", coco, {"none": careful}, protocol=published)
    write_run(tmp_path / "second", coco, {"var": careful})
    compared = compare_runs([tmp_path / "first", tmp_path / "second"])
    assert "second: no protocol, which first has" in compared.notes


@pytest.mark.skipif(not DATA.is_dir(), reason="the released files are not on this machine")
def test_the_published_lists_are_known_by_their_hash():
    captions = [json.loads(line) for line in (DATA / "captions" / "llava-1.5" / "greedy.jsonl").open(encoding="utf-8")]
    ids = sorted(record["image_id"] for record in captions)
    assert hash_lines(ids) == find_protocol("opera-chair-500").images_sha256
    settings = RunSettings(
        protocol="vcd-pope",
        questions=[DATA / "pope" / f"coco_pope_{name}.json" for name in ("random", "popular", "adversarial")],
    )
    from vlm_guard.eval.tasks.pope.task import PopeTask

    asked = PopeTask.asked_images(settings.pope)
    assert len(asked) == 500 and hash_lines(sorted(asked)) == find_protocol("vcd-pope").images_sha256


def test_a_folder_with_several_splits_asks_which(coco, tmp_path, capsys):
    for kind in ("instances", "captions"):
        text = (coco / "annotations" / f"{kind}_test.json").read_text()
        (coco / "annotations" / f"{kind}_val2014.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"has the splits test, val2014; say which with --split val2014, or --split all"
    ):
        open_dataset(f"coco:{coco}")
    assert open_dataset(f"coco:{coco}", split="test").annotation_hashes.keys() == {
        "instances_test.json",
        "captions_test.json",
    }
    assert len(open_dataset(f"coco:{coco}", split="all").annotation_hashes) == 4
    code, _, err = call(capsys, "eval", "--data", f"coco:{coco}", "--out", tmp_path / "run")
    assert code == 2 and "say which with --split" in err and not (tmp_path / "run").exists()


def test_questions_choose_their_images(coco, tmp_path):
    questions = tmp_path / "pope_random.json"
    asked = [(3, "yes"), (3, "no"), (2, "yes")]
    lines = [
        json.dumps({"question_id": place, "image": f"{number:012d}.png", "text": f"Is it {place}?", "label": label})
        for place, (number, label) in enumerate(asked, 1)
    ]
    questions.write_text("\n".join(lines))
    data = open_data(RunSettings(data=f"coco:{coco}", tasks=["pope"], questions=[questions]))
    assert list(data.images) == [3, 2] and data.selection == "images of the questions"
    whole = open_data(RunSettings(data=f"coco:{coco}", questions=[questions]))
    assert list(whole.images) == [1, 2, 3, 4], "chair asks about every image"
    lines.append(json.dumps({"question_id": 4, "image": "000000000077.png", "text": "Is it?", "label": "no"}))
    questions.write_text("\n".join(lines))
    data = open_data(RunSettings(data=f"coco:{coco}", tasks=["pope"], questions=[questions]))
    assert list(data.images) == [3, 2], "a question about an image that the data lacks is not asked"
    (coco / "images" / "000000000002.png").unlink()
    data = open_data(RunSettings(data=f"coco:{coco}", tasks=["pope"], questions=[questions]))
    assert list(data.images) == [3, 2], "one whose file is missing is asked about, and counted as skipped"


def test_the_commands_of_the_docs_are_understood():
    text = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
    commands = re.findall(r"`(vlm-guard eval [^`]+)`", text)
    assert len(commands) > 5
    variables = dict(re.findall(r'^(LLAVA|POPE)="(.*)"$', text, flags=re.MULTILINE))
    named = [command for command in commands if "--protocol " in command and "NAME" not in command]
    called = {re.search(r"--protocol (\S+)", command)[1] for command in named}
    assert called <= {protocol.name for protocol in PROTOCOLS} and len(called) > 3
    for command in commands:
        if "NAME" in command:
            continue
        for name, value in variables.items():
            command = command.replace(f"${name}", value)
        read = build_app("eval")
        full = next(entry.callback for entry in read.registered_commands if entry.name == "eval")
        known = {f"--{parameter.replace('_', '-')}" for parameter in inspect.signature(full).parameters}
        given = {word for word in command.split() if word.startswith("--")}
        assert given <= known | {"--method", "--questions", "--sample"}, command
