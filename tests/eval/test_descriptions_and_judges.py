"""AMBER's descriptions, Object HalBench by rules, and tasks that a judge reads: small cases with known answers."""

import json
import random
from dataclasses import asdict

import pytest
from run_records import write_run
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.data.datasets import open_dataset
from vlm_guard.eval.run.summary import MethodRecords
from vlm_guard.eval.tasks.amber_generative.descriptions import (
    AmberScene,
    AmberWords,
    count_description,
    read_scenes,
    read_vectors,
    read_words,
)
from vlm_guard.eval.tasks.amber_generative.task import AmberGenerativeTask, find_nouns
from vlm_guard.eval.tasks.mmhal import MmhalTask
from vlm_guard.eval.tasks.object_halbench import (
    ObjectHalBenchSettings,
    ObjectHalBenchTask,
    find_mentions,
    read_names,
    read_questions_of_images,
)
from vlm_guard.eval.tasks.openchair import OpenChairSettings, OpenChairTask, read_concreteness
from vlm_guard.eval.tasks.shared.judging import judge_prompts, with_verdicts


def call(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def values(task: str, scores: list[dict]) -> dict[str, float]:
    records = [
        {"task": task, "sample": f"{task}/{place}", "image_id": place, "text": "", "finished": True, "score": score}
        for place, score in enumerate(scores)
    ]
    return {name.partition(".")[2]: item.value for name, item in MethodRecords(records).estimates(100).items()}


# ---- AMBER's descriptions

WORDS = AmberWords(
    stand_for={"dog": ("puppy",), "ship": ("boat",), "sky": (), "cat": (), "cloud": ("fog",), "tree": ()},
    safe=frozenset(["line"]),
)
SCENE = AmberScene(number=1, truth=("dog", "ship", "ship", "sky"), unlikely=("cat", "cloud"))
CLOSE = {frozenset(("tree", "cloud")), frozenset(("fog", "sky")), frozenset(("fog", "cat"))}


def similar(first: str, second: str) -> bool:
    return first == second or frozenset((first, second)) in CLOSE


@pytest.mark.parametrize(
    ("nouns", "expected"),
    [
        ([], (0, 0, 0, 0, 0)),
        (["dog", "puppy", "puppy"], (3, 0, 0, 1, 0)),
        (["boat"], (1, 0, 0, 1, 0)),  # the second ship stays uncovered, as in AMBER's script
        (["cat"], (1, 1, 1, 0, 1)),
        (["fog"], (1, 1, 1, 0, 1)),  # stands for a listed cloud
        (["tree"], (1, 1, 1, 0, 0)),
        (["house", "dog"], (1, 0, 0, 1, 0)),  # not of the vocabulary
    ],
)
def test_descriptions_without_vectors(nouns, expected):
    counts = count_description(nouns, SCENE, WORDS)
    assert (counts.nouns, counts.wrong, counts.undecided, counts.covered, counts.invented) == expected
    assert (counts.objects, counts.unlikely) == (4, 2)


def test_descriptions_with_vectors():
    counts = count_description(["tree", "fog", "cat"], SCENE, WORDS, similar)
    # tree: close to cloud, to nothing true. fog: close to sky, so right; it stands for cloud and is close to cat.
    assert (counts.wrong, counts.covered, counts.invented, counts.undecided) == (2, 1, 2, 0)


def plain_amber(nouns, scene, words, same) -> tuple[int, int, int]:
    """AMBER's rules written down once more, with lists of marks instead of sets."""
    marks = {"truth": [0] * len(scene.truth), "unlikely": [0] * len(scene.unlikely)}

    def mark(kind, objects, test):
        for place, item in enumerate(objects):
            for other in words.stand_for[item]:
                if test(other):
                    marks[kind][place] = 1
                    return True
        for place, item in enumerate(objects):
            if test(item):
                marks[kind][place] = 1
                return True
        return False

    wrong = 0
    for noun in nouns:
        if noun not in words.all or noun in words.safe:
            continue
        if mark("truth", scene.truth, noun.__eq__):
            continue
        mark("unlikely", scene.unlikely, noun.__eq__)
        mark("unlikely", scene.unlikely, lambda word, noun=noun: same(noun, word))
        wrong += not mark("truth", scene.truth, lambda word, noun=noun: same(noun, word))
    return wrong, sum(marks["truth"]), sum(marks["unlikely"])


def test_bounds_hold_for_whatever_vectors_say():
    draw = random.Random(5)
    for _ in range(300):
        nouns = [draw.choice(sorted(WORDS.all)) for _ in range(draw.randrange(6))]
        pairs = {frozenset(draw.sample(sorted(WORDS.all), 2)) for _ in range(draw.randrange(8))}

        def same(first, second, pairs=pairs):
            return first == second or frozenset((first, second)) in pairs

        exact, bound = count_description(nouns, SCENE, WORDS, same), count_description(nouns, SCENE, WORDS)
        assert (exact.wrong, exact.covered, exact.invented) == plain_amber(nouns, SCENE, WORDS, same)
        assert bound.wrong - bound.undecided <= exact.wrong <= bound.wrong
        assert bound.covered <= exact.covered <= min(4, bound.covered + bound.undecided_words)
        assert bound.invented <= exact.invented <= min(2, bound.invented + bound.undecided_words)


def test_descriptions_add_up():
    scores = [asdict(count_description(nouns, SCENE, WORDS)) | {"words": 9} for nouns in (["dog", "cat"], ["sky"])]
    found = values("amber_generative", scores)
    assert found["chair"] == 1 / 3 and found["chair_low"] == 0
    assert found["cover"] == 2 / 8 and found["cover_high"] == 3 / 8
    assert found["hal"] == 1 / 2 and found["cog"] == 1 / 4 and found["cog_high"] == 2 / 4
    records = [{"score": score} for score in scores]
    summary = AmberGenerativeTask.summarise(records, {"vectors_sha256": None})
    assert summary["bounds"]["CHAIR"] == {"low": 0.0, "high": 33.3} and not summary["exact"]
    assert summary["counts"]["nouns"] == 3 and json.loads(json.dumps(summary)) == summary


def test_nouns_without_a_tagger_keep_ambers_case():
    text = "Dogs run. Two puppies, a ship and skies; trees plant a line."
    assert find_nouns(text, "pattern", WORDS.all | WORDS.safe) == ["puppy", "ship", "sky", "tree", "line"]


def test_ambers_files(tmp_path):
    (tmp_path / "relation.json").write_text(json.dumps(WORDS.stand_for))
    (tmp_path / "safe.txt").write_text("line\n\n")
    words = read_words(tmp_path / "relation.json", tmp_path / "safe.txt")
    assert words == WORDS
    records = [{"id": 7, "type": "generative", "truth": ["dog"], "hallu": []}, {"id": 8, "type": "relation"}]
    (tmp_path / "annotations.json").write_text(json.dumps(records))
    (tmp_path / "query.json").write_text('[{"id": 7, "image": "AMBER_3.jpg"}, {"id": 8, "image": "AMBER_3.jpg"}]')
    scenes = read_scenes(tmp_path / "query.json", tmp_path / "annotations.json", words)
    assert scenes == {3: AmberScene(number=7, truth=("dog",), unlikely=())}
    (tmp_path / "annotations.json").write_text(json.dumps([records[0] | {"hallu": ["unicorn"]}]))
    with pytest.raises(ValueError, match=r"'hallu' has 'unicorn', which relation\.json does not know"):
        read_scenes(tmp_path / "query.json", tmp_path / "annotations.json", words)
    (tmp_path / "relation.json").write_text('{"dog": "puppy"}')
    with pytest.raises(ValueError, match="'dog' must be a list of words"):
        read_words(tmp_path / "relation.json", tmp_path / "safe.txt")


def test_vectors_from_a_file(tmp_path):
    path = tmp_path / "vectors.json"
    vectors = {"dog": [1, 0], "puppy": [0.9, 0.1], "sky": [0, 1], "none": [0, 0], "hot": [1, 0], "air": [0, 1]}
    path.write_text(json.dumps(vectors))
    same = read_vectors(path, ["dog", "puppy", "sky", "none", "hot air"])
    assert same("dog", "puppy") and not same("dog", "sky") and same("none", "none") and not same("none", "dog")
    assert not same("hot air", "dog"), "cosine 0.71 of a phrase's mean"
    with pytest.raises(ValueError, match="lacks the vectors of 1 of 2 words, for example 'cat'"):
        read_vectors(path, ["dog", "cat"])
    for content, message in (('{"dog": [1], "sky": [1, 2]}', "equally many"), ('{"dog": "x", "sky": 3}', "lists of")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_vectors(path, ["dog", "sky"])


# ---- Object HalBench


def test_object_halbench_names_and_mentions(tmp_path):
    names = read_names(None)
    found = find_mentions("Two Dogs and a baby bear near the toilet seat; dogs!", names, "pattern")
    assert [(item["node"], item["text"]) for item in found] == [
        ("dog", "Dogs"),
        ("bear", "baby bear"),
        ("toilet", "toilet seat"),
        ("dog", "dogs"),
    ]
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps({"dog": ["hound", "sheep dog"], "bear": [], "train": []}))
    larger = read_names(path)
    found = find_mentions("A hound, a sheep dog, a cat, a baby bear on the train track", larger, "pattern")
    assert [item["node"] for item in found] == ["dog", "dog", "bear"], "other names, but CHAIR's pairs"
    lines = tmp_path / "names.txt"
    lines.write_text("dog, hound, sheep dog\nbear\n\ntrain\n")
    assert read_names(lines) == larger
    lines.write_text("unicorn, horse")
    with pytest.raises(ValueError, match="'unicorn' must be one of MSCOCO's 80 objects"):
        read_names(lines)


def test_object_halbench_scores_and_asks_the_released_questions(tmp_path):
    coco = make_coco_folder(tmp_path / "coco", images=3)
    data = open_dataset(f"coco:{coco}")
    asked = tmp_path / "asked.jsonl"
    first, second = list(data.images)[:2]
    asked.write_text(f'{{"image_id": {second}, "question": "What?"}}\n{{"image_id": "{first}", "question": "Tell."}}')
    task = ObjectHalBenchTask(data, ObjectHalBenchSettings(questions=asked))
    samples = task.samples()
    assert [(sample.image_id, sample.prompt) for sample in samples] == [(first, "Tell."), (second, "What?")]
    there = sorted(data.objects[first])[0]
    absent = next(name for name in ("zebra", "toaster", "kite") if name not in data.objects[first])
    scores = [task.score(samples[0], f"A {there}, a {absent} and a {absent}."), task.score(samples[1], "Nothing.")]
    found = values("object_halbench", scores)
    assert found["response"] == 1, "the answer without any object is left out"
    assert found["mention"] == 2 / 3 and found["mean_words"] == (len(f"A {there}, a x and a x.".split()) + 1) / 2
    assert found["recall"] == 1 / (len(data.objects[first]) + len(data.objects[second]))
    asked.write_text(f'{{"image_id": {second}, "question": "What?"}}\n' * 2)
    with pytest.raises(ValueError, match="stands in the file before"):
        read_questions_of_images(asked)


# ---- judges


@pytest.fixture
def mmhal(tmp_path):
    """A run of two methods on four questions of MMHal-Bench's form."""
    records = [
        {
            "question_type": ("attribute", "other")[number % 2],
            "image_id": f"a{number}",
            "image_src": f"https://example.org/{number}.jpg",
            "image_content": ["Dog", "Tree"],
            "question": f"What {{answer}} is {number}?",
            "gt_answer": "A dog.",
        }
        for number in range(4)
    ]
    (tmp_path / "response_template.json").write_text(json.dumps(records), encoding="utf-8")
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    data = MmhalTask.open_data(str(tmp_path), None, MmhalTask.Settings())
    run = tmp_path / "run"
    answers = {"none": lambda *_: "A dog {question}.", "var": lambda *_: "A red cat."}
    write_run(run, tmp_path, answers, tasks=[MmhalTask(data)])
    return run


def test_prompts_go_out_and_verdicts_come_in(mmhal, tmp_path, capsys):
    out = tmp_path / "prompts.jsonl"
    code, printed, _ = call(capsys, "judge", mmhal, "--out", out)
    prompts = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert code == 0 and "8 prompts" in printed and len({prompt["id"] for prompt in prompts}) == 8
    assert prompts[0]["id"] == "none|mmhal/1#rating"
    assert "The picture shows: Dog, Tree" in prompts[0]["prompt"]
    assert "What {answer} is 0?" in prompts[0]["prompt"], "what a question holds is not filled in again"
    assert "A dog {question}." in prompts[0]["prompt"]
    said = tmp_path / "said.jsonl"
    ratings = [6, 3, 2, 5, 0, 1, 2, 3]
    lines = [{"id": prompt["id"], "verdict": f"Fine. rating: {n}"} for prompt, n in zip(prompts, ratings)]
    said.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    code, printed, err = call(capsys, "judge", mmhal, "--verdicts", said, "--format", "json")
    assert code == 0, err
    rows = {(row["method"], row["metric"]): row for row in json.loads(printed)}
    assert rows["none", "mmhal.score"]["value"] == 4 and rows["var", "mmhal.score"]["value"] == 1.5
    assert rows["none", "mmhal.hallucination_rate"]["value"] == 0.25
    assert rows["var", "mmhal.hallucination_rate"]["value"] == 0.75
    assert rows["none", "mmhal.attribute.score"]["value"] == 4 and rows["none", "mmhal.other.score"]["value"] == 4
    assert rows["var", "mmhal.score"]["difference_value"] == -2.5
    assert "score ↑" in call(capsys, "judge", mmhal, "--verdicts", said)[1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is no valid JSON|has no verdicts"),
        ([{"id": "none|mmhal/1#rating"}], "'verdict' is missing; it must be text"),
        ([{"id": "mmhal/1#rating", "verdict": "x"}], "is none of a file of prompts"),
        ([{"id": "none|mmhal/1#rating", "verdict": "x"}], "none: 3 of 4 prompts have no verdict"),
        ([{"id": "none|mmhal/1#rating", "verdict": "x"}] * 2, "which stands in the file before"),
    ],
)
def test_broken_verdicts_are_one_line(mmhal, tmp_path, capsys, lines, message):
    import re

    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    code, _, err = call(capsys, "judge", mmhal, "--verdicts", said)
    assert code == 2 and re.search(message, err) and len(err.splitlines()) == 1, err


def test_a_template_of_ones_own(mmhal, tmp_path, capsys):
    template = tmp_path / "template.txt"
    template.write_text("{content}/{question}/{reference}/{answer}: rate it")
    out = tmp_path / "prompts.jsonl"
    assert call(capsys, "judge", mmhal, "--out", out, "--template", template)[0] == 0
    first = json.loads(out.read_text().splitlines()[0])["prompt"]
    assert first == "Dog, Tree/What {answer} is 0?/A dog./A dog {question}.: rate it"
    template.write_text("{content}/{question}: rate it")
    code, _, err = call(capsys, "judge", mmhal, "--out", out, "--template", template)
    assert code == 2 and "the judge's template lacks {reference}" in err
    assert call(capsys, "judge", mmhal)[0] == 2


@pytest.mark.parametrize(
    ("text", "rating"),
    [("Rating: 4", 4), ("so\nRATING:0.", 0), ("Rating: 3 or rating: 5", None), ("good", None), ("Rating: 12", None)],
)
def test_ratings(text, rating):
    assert MmhalTask.read_verdict(text) == rating


def test_openchair_asks_about_concrete_words_and_counts_the_decided_ones(tmp_path):
    table = tmp_path / "words.tsv"
    table.write_text("Word\tBigram\tConc.M\ndog\t0\t4.85\ngrass\t0\t4.9\nphoto\t0\t4.9\nidea\t0\t1.61\nbus\t0\t4.9\n")
    assert read_concreteness(table) == {"dog", "grass", "bus"}
    (tmp_path / "a.png").write_bytes(b"")
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "a.png", "captions": ["A dog {noun}.", "It runs."]}')
    data = OpenChairTask.open_data(str(path), None, OpenChairTask.Settings())
    task = OpenChairTask(data, OpenChairSettings(concreteness=table))
    (sample,) = task.samples()
    score = task.score(sample, "A photo of Dogs, an idea, a bus, and a dog on grass")
    assert score["nouns"] == ["dog", "bus", "grass"]
    record = {"task": "openchair", "sample": sample.key, "image_id": 1, "text": "", "finished": True, "score": score}
    prompts = judge_prompts(OpenChairTask, [record])
    assert list(prompts) == ["openchair/1#dog", "openchair/1#bus", "openchair/1#grass"]
    assert "- A dog {noun}.\n- It runs." in prompts["openchair/1#bus"] and "named: bus" in prompts["openchair/1#bus"]
    said = dict(zip(prompts, ("Yes.", '"no", it is not', "Unsure")))
    judged = with_verdicts(OpenChairTask, [record], said)
    found = {name: item.value for name, item in MethodRecords(judged).estimates(100).items()}
    assert found["openchair.rate"] == 0.5 and found["openchair.nouns"] == 3
    assert "openchair.rate" not in MethodRecords([record]).estimates(100)
    table.write_text("Word\tConc.M\ndog\tx\n")
    with pytest.raises(ValueError, match=r"line 2: Conc\.M is 'x'; it must be a number"):
        read_concreteness(table)
