"""The runner on the built-in model: records, resume, broken images, the order of methods, what results say."""

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from small_coco import make_coco_folder

from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings

VAR = "var:sink_dimensions=1,2,min_visual_mass=0.0,min_content_share=0.0,sink_threshold=1.0"
VOLATILE = ("seconds", "memory_bytes", "memory_kind")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return make_coco_folder(tmp_path_factory.mktemp("data") / "small")


def settings(coco: Path, **changes) -> RunSettings:
    values = {
        "data": f"coco:{coco}",
        "device": "cpu",
        "methods": ["none", VAR],
        "max_new_tokens": 12,
        "batch_size": 4,
        "resamples": 100,
        "pope": {"strategies": ["random", "popular"]},
    }
    return RunSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def finished(coco, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    evaluate(settings(coco), out)
    return out


def stable(folder: Path) -> dict[str, dict]:
    """Records without times and memory."""
    records = read_records(folder / "samples.jsonl")[0]
    return {
        key: {name: value for name, value in record.items() if name not in VOLATILE} for key, record in records.items()
    }


def method_folders(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if path.is_dir())


def test_every_sample_has_one_record_and_summaries_follow_from_them(finished):
    results = read_results(finished)
    assert [method.label for method in results.methods] == ["none", VAR]
    for method in results.methods:
        records = stable(finished / method.directory)
        captions = [record for record in records.values() if record["task"] == "chair"]
        questions = [record for record in records.values() if record["task"] == "pope"]
        assert len(captions) == 6
        assert method.samples["chair"].answered == 6
        assert method.samples["pope"].answered == len(questions)
        # Positives are shared by the strategies and asked once: 3 positives and 3 to 6 negatives per image.
        assert 6 * 6 <= len(questions) <= 6 * 9
        mentions = [mention for record in captions for mention in record["score"]["mentions"]]
        assert method.chair["mentions"] == len(mentions)
        assert method.chair["hallucinated_mentions"] == sum(mention["hallucinated"] for mention in mentions)
        assert method.pope["questions"] == 6 * 6 * 2
        assert method.cost.tokens == sum(record["tokens"] for record in records.values())
        assert method.cost.seconds > 0
        assert method.cost.peak_memory_bytes > 2**20


def test_estimates_agree_with_the_scores_of_chair_and_pope(finished):
    for method in read_results(finished).methods:
        values = {name: estimate.value for name, estimate in method.estimates.items()}
        for name in ("chair_i", "chair_s", "recall", "precision", "f1", "mean_words", "mean_tokens", "repetition"):
            assert values[name] == pytest.approx(method.chair[name], abs=1e-12)
        for strategy, score in method.pope["strategies"].items():
            for rate in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
                assert values[f"pope.{strategy}.{rate}"] == pytest.approx(score[rate], abs=1e-12)
        for rate, value in method.pope["mean"].items():
            assert values[f"pope.mean.{rate}"] == pytest.approx(value, abs=1e-12)


def test_methods_take_turns_and_the_method_really_acts(finished):
    plain, guarded = (stable(folder) for folder in method_folders(finished))
    for task in ("chair", "pope"):
        assert {record["turn"] for record in plain.values() if record["task"] == task} == {0, 1}
    assert all(plain[key]["turn"] != guarded[key]["turn"] for key in plain)
    assert any(plain[key]["text"] != guarded[key]["text"] for key in plain)


def test_the_run_leaves_answers_as_one_by_one_generation_gives_them(coco, finished):
    """Left padding, batching and re-attaching the guard change nothing about the baseline's first caption."""
    from vlm_guard import builtin
    from vlm_guard.untrusted.picture_reader import read_picture

    model, processor = builtin()
    picture = read_picture(coco / "images" / "000000000001.png")
    text = "USER: <image>\nPlease describe this image in detail. ASSISTANT:"
    inputs = processor(images=picture, text=text, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    expected = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert stable(finished / "none")["chair/1"]["text"] == expected


def test_results_say_what_was_measured(finished):
    results = read_results(finished)
    assert results.tasks["chair"]["prompt"] == "Please describe this image in detail."
    assert results.tasks["pope"]["parser"] == "strict"
    assert results.image_ids == [1, 2, 3, 4, 5, 6]
    assert len(results.data["image_ids_sha256"]) == 64
    assert set(results.data["annotations_sha256"]) == {"instances_test.json", "captions_test.json"}
    assert results.model["weights"].startswith("sha256:")
    assert results.template["source"] == "chat template"
    assert results.decoding["do_sample"] is False
    assert results.environment["versions"]["torch"] == metadata.version("torch")
    assert results.methods[1].methods[0]["options"]["sink_dimensions"] == "1,2"
    assert results.methods[0].sessions[0]["wall_seconds"] > 0
    assert str(finished) not in (finished / "results.json").read_text(encoding="utf-8")
    assert "small" in results.data["name"] and str(Path(results.data["name"])) == results.data["name"]


def test_a_finished_run_is_not_asked_again(coco, finished, monkeypatch):
    def never(*arguments, **named):
        raise AssertionError("a finished run must not generate")

    before = (finished / "results.json").read_text(encoding="utf-8")
    monkeypatch.setattr("vlm_guard.eval.run.engines.in_process.generate_batch", never)
    results = evaluate(settings(coco), finished)
    old = json.loads(before)
    assert [method.estimates["chair_i"].value for method in results.methods] == [
        method["estimates"]["chair_i"]["value"] for method in old["methods"]
    ]


def test_an_interrupted_run_continues_to_the_same_records(coco, finished, tmp_path, monkeypatch):
    import vlm_guard.eval.run.engines.in_process as engine

    original, calls = engine.generate_batch, []

    def stop_after_five(*arguments, **named):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(engine, "generate_batch", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings(coco), tmp_path)
    assert not (tmp_path / "results.json").exists()
    # A kill can also leave a line without its end.
    with (tmp_path / "none" / "samples.jsonl").open("ab") as file:
        file.write(b'{"sample": "chair/5", "task": "cha')
    monkeypatch.setattr(engine, "generate_batch", original)
    evaluate(settings(coco), tmp_path)
    for folder, expected in zip(method_folders(tmp_path), method_folders(finished)):
        assert stable(folder) == stable(expected)
    sessions = read_results(tmp_path).methods[0].sessions
    assert [session["wall_seconds"] is None for session in sessions] == [True, False]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "What is this?"}, "tasks.chair.prompt"),
        ({"max_new_tokens": 13}, "tasks.chair.max_new_tokens"),
        ({"count": 5}, "data.images"),
        ({"batch_size": 8}, "decoding.batch_size"),
        ({"pope": {"strategies": ["random", "popular"], "parser": "pope"}}, "tasks.pope.parser"),
        ({"dtype": "bfloat16"}, "model.dtype"),
        ({"template": "{image} {prompt}"}, "template.source"),
    ],
)
def test_other_settings_are_not_mixed_in(coco, finished, changes, field):
    with pytest.raises(ValueError, match=rf"other settings: {field.replace('.', '[.]')} was .* and is now"):
        evaluate(settings(coco, **changes), finished)


def test_other_options_under_the_same_name_are_not_mixed_in(coco, tmp_path):
    small = {"count": 1, "tasks": ["chair"], "methods": ["none", "var"]}
    options = {"var.sink_dimensions": "1,2"}
    evaluate(settings(coco, **small, options=options), tmp_path)
    with pytest.raises(ValueError, match=r"methods[.]0[.]options[.]move_fraction was 0.4 and is now 0.3"):
        evaluate(settings(coco, **small, options={**options, "var.move_fraction": "0.3"}), tmp_path)


def test_no_resume_starts_anew(coco, tmp_path):
    small = {"count": 2, "tasks": ["chair"], "methods": ["none"]}
    evaluate(settings(coco, **small), tmp_path)
    changed = settings(coco, **small, prompt="What is this?", resume=False)
    evaluate(changed, tmp_path)
    records = stable(tmp_path / "none")
    assert {record["prompt"] for record in records.values()} == {"What is this?"}
    assert len(records) == 2


def test_broken_and_missing_images_are_recorded_skipped_and_counted(tmp_path):
    folder = make_coco_folder(tmp_path / "data")
    (folder / "images" / "000000000002.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    listed = tmp_path / "list.txt"
    listed.write_text("1\n2\n3\n", encoding="utf-8")
    (folder / "images" / "000000000003.png").unlink()
    chosen = settings(folder, image_list=listed, methods=["none"])
    results = evaluate(chosen, tmp_path / "run")
    method = results.methods[0]
    assert method.samples["chair"].model_dump() == {"asked": 3, "answered": 1, "skipped": 2, "cut_off": 1}
    assert {entry["image_id"] for entry in method.skipped_images} == {2, 3}
    assert any("cannot be read" in entry["error"] for entry in method.skipped_images)
    assert any("no file" in entry["error"] for entry in method.skipped_images)
    assert method.chair["captions"] == 1
    again = evaluate(chosen, tmp_path / "run")
    assert again.methods[0].samples["chair"].skipped == 2
    with pytest.raises(ValueError, match="--strict"):
        evaluate(settings(folder, image_list=listed, methods=["none"], strict=True), tmp_path / "strict")


def test_sampling_does_not_depend_on_what_ran_before(coco, tmp_path):
    sampled = {"methods": ["none"], "tasks": ["chair"], "decoding": {"do_sample": True, "temperature": 1.5}}
    evaluate(settings(coco, **sampled), tmp_path / "whole")
    out = tmp_path / "resumed"
    evaluate(settings(coco, **sampled), out)
    lines = (out / "none" / "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "none" / "samples.jsonl").write_text("".join(lines[:5]), encoding="utf-8")  # a batch and a quarter
    evaluate(settings(coco, **sampled), out)
    assert stable(out / "none") == stable(tmp_path / "whole" / "none")
    other = settings(coco, **sampled, seed=1)
    evaluate(other, tmp_path / "other")
    texts = [[record["text"] for record in stable(tmp_path / name / "none").values()] for name in ("whole", "other")]
    assert texts[0] != texts[1]


def test_published_questions_are_asked_instead_of_built_ones(coco, tmp_path):
    questions = tmp_path / "coco_pope_adversarial.json"
    lines = [
        {
            "question_id": 1,
            "image": "COCO_val2014_000000000001.jpg",
            "text": "Is there a dog in the image?",
            "label": "yes",
        },
        {
            "question_id": 2,
            "image": "COCO_val2014_000000000001.jpg",
            "text": "Is there a bus in the image?",
            "label": "no",
        },
        {
            "question_id": 3,
            "image": "COCO_val2014_000000099999.jpg",
            "text": "Is there a cat in the image?",
            "label": "no",
        },
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    results = evaluate(
        settings(coco, methods=["none"], tasks=["pope"], pope={"questions": [questions]}), tmp_path / "run"
    )
    assert results.tasks["pope"]["questions"] == 2
    assert results.methods[0].pope["strategies"]["adversarial"]["questions"] == 2


def test_the_end_token_counts_and_cut_off_answers_are_counted(coco, tmp_path):
    results = evaluate(settings(coco, methods=["none"], max_new_tokens=100), tmp_path)
    records = stable(tmp_path / "none").values()
    captions = [record for record in records if record["task"] == "chair"]
    assert results.methods[0].samples["chair"].cut_off == sum(not record["finished"] for record in captions)
    assert any(record["finished"] and record["tokens"] < 100 for record in captions)
    answers = [record for record in records if record["task"] == "pope" and record["text"] in ("Yes", "No")]
    assert answers and all(record["tokens"] == 2 and record["finished"] for record in answers)


def test_work_is_shared_evenly_task_by_task(coco):
    from vlm_guard.eval.run.batches import share
    from vlm_guard.eval.run.setup import set_up

    run = set_up(settings(coco, methods=["none"], batch_size=1))
    # The thread that reads ahead has a tokenizer of its own.
    assert run.engine.reading_processor.tokenizer._tokenizer is not run.engine.loaded.processor.tokenizer._tokenizer
    shares = [share(run.batches, rank, 4) for rank in range(4)]
    assert sorted(batch.index for mine in shares for batch in mine) == list(range(len(run.batches)))
    for task in ("chair", "pope"):
        sizes = [sum(batch.task.name == task for batch in mine) for mine in shares]
        assert max(sizes) - min(sizes) <= 1
    # Mixed evenly: in the first half of the batches there is half of the captions.
    half = run.batches[: len(run.batches) // 2]
    assert sum(batch.task.name == "chair" for batch in half) == 3
