"""Readers of published yes/no benchmarks, on files of the releases' form made here to the releases' counts."""

import json
from collections import Counter

import pytest

from vlm_guard.cli import main
from vlm_guard.eval.tasks.dash_b import DashBTask, read_dash_b, read_published
from vlm_guard.eval.tasks.hallusionbench import HallusionBenchTask, read_hallusionbench
from vlm_guard.eval.tasks.pope.questions import read_questions
from vlm_guard.eval.tasks.pope.scoring import relabel, score_answers
from vlm_guard.eval.tasks.shared.yes_no import read_yes_no

# ---- RePOPE: of POPE's 3,000 questions, 1,293 of the 1,500 with the answer yes, and most of the others

# Label before and after, and how many questions, for each strategy of the release.
REPOPE = {
    "random": {("no", "no"): 1476, ("yes", "yes"): 1154, ("yes", "no"): 139, ("no", "yes"): 5},
    "popular": {("no", "no"): 1395, ("yes", "yes"): 1154, ("yes", "no"): 139, ("no", "yes"): 39},
    "adversarial": {("no", "no"): 1358, ("yes", "yes"): 1154, ("yes", "no"): 139, ("no", "yes"): 33},
}
KEPT = {"random": 2774, "popular": 2727, "adversarial": 2684}


@pytest.fixture
def pope_files(tmp_path):
    """POPE's and RePOPE's file of every strategy, and answers that follow POPE's labels."""
    for strategy, changes in REPOPE.items():
        left = {
            label: [after for (before, after), count in changes.items() if before == label for _ in range(count)]
            for label in ("yes", "no")
        }
        asked, kept, answers = [], [], []
        for number in range(1, 3001):
            label = "yes" if number % 2 else "no"
            image = f"COCO_val2014_{(number - 1) // 6 + 1:012d}.jpg"
            record = {"question_id": number, "image": image, "text": f"Is there a thing{number} in the image?"}
            asked.append(record | {"label": label})
            answers.append({"question_id": number, "answer": label})
            if left[label]:
                kept.append(record | {"label": left[label].pop()})
        for name, records in (("pope", asked), ("repope", kept), ("answers", answers)):
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (tmp_path / f"coco_{name}_{strategy}.json").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("strategy", REPOPE)
def test_answers_to_pope_are_scored_with_repopes_labels(pope_files, strategy):
    asked, labels = (read_questions(pope_files / f"coco_{name}_{strategy}.json") for name in ("pope", "repope"))
    assert (len(asked), len(labels)) == (3000, KEPT[strategy])
    answers = [question.label for question in asked]
    assert score_answers(asked, answers).strategies[strategy].accuracy == 1
    kept, texts = relabel(asked, answers, labels)
    score = score_answers(kept, texts).strategies[strategy]
    changes = REPOPE[strategy]
    assert (score.true_yes, score.false_yes) == (changes["yes", "yes"], changes["yes", "no"])
    assert (score.true_no, score.false_no) == (changes["no", "no"], changes["no", "yes"])


def call(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def test_the_command_prints_both_labels_and_all_parsers(pope_files, capsys):
    files = {
        name: [pope_files / f"coco_{name}_{strategy}.json" for strategy in REPOPE]
        for name in ("pope", "repope", "answers")
    }
    options = [item for path in files["pope"] for item in ("--questions", path)]
    options += [item for path in files["repope"] for item in ("--relabelled", path)]
    code, out, _ = call(capsys, "pope", *files["answers"], *options, "--parsers", "--json")
    record = json.loads(out)
    assert code == 0 and record["questions"] == 9000 and record["mean"]["accuracy"] == 1
    assert {name: item["questions"] for name, item in record["relabelled"]["strategies"].items()} == KEPT
    assert set(record["parsers"]) == {"strict", "pope", "opera", "vcd"}
    code, out, _ = call(capsys, "pope", *files["answers"], *options, "--parsers")
    assert code == 0 and "With the labels of coco_repope_random.json" in out and "vcd" in out and "2774" in out
    wrong = ("--questions", files["pope"][0], "--relabelled", files["repope"][1])
    code, _, err = call(capsys, "pope", files["answers"][0], *wrong)
    assert code == 2 and "is not among those that were asked" in err and len(err.splitlines()) == 1


def test_a_relabelled_question_about_something_else_is_refused(pope_files):
    asked, labels = (read_questions(pope_files / f"coco_{name}_random.json") for name in ("pope", "repope"))
    moved = [labels[1], *labels[2:]]
    asked[0], asked[1] = asked[1], asked[0]
    relabel(asked, ["yes"] * 3000, moved)  # the order does not matter
    from dataclasses import replace

    with pytest.raises(ValueError, match="asked was 'Is there a thing2 in the image"):
        relabel(asked, ["yes"] * 3000, [replace(labels[1], object="dog")])


# ---- DASH-B: pictures of every source, as many without as with the object; 70 objects

DASH_B = {
    "coco": (10, 216),
    "openimages_10_quantile": (7, 161),
    "openimages_common": (6, 104),
    "openimages_median": (4, 58),
    "openimages_uncommon": (3, 109),
    "objects_365_100": (12, 226),
    "spurious_imagenet": (28, 467),
}


def dash_b(folder):
    listed = {
        source: {
            f"thing {place}": [f"{n}.png" for n in range(pictures) if n % objects == place] for place in range(objects)
        }
        for source, (objects, pictures) in DASH_B.items()
    }
    for kind in ("neg", "pos"):
        (folder / f"dash_benchmark_{kind}.json").write_text(json.dumps(listed), encoding="utf-8")
    return read_dash_b(folder)


def test_dash_b_has_the_releases_counts_and_numbers(tmp_path):
    questions = dash_b(tmp_path)
    assert len(questions) == 2682 and Counter(question.label for question in questions) == {"no": 1341, "yes": 1341}
    assert len({(question.group, question.text) for question in questions}) == 70
    assert questions[0].text == "Can you see a thing 0 in this image? Please answer only with yes or no."
    assert questions[0].image == tmp_path / "neg" / "coco" / "thing 0" / "0.png"
    # PaliGemma-3b as released: 354 of the pictures without and 1,158 of those with the object answered rightly.
    right = {"no": 354, "yes": 1158}
    records = []
    for place, question in enumerate(questions):
        right[question.label] -= 1
        answer = question.label if right[question.label] >= 0 else {"yes": "no", "no": "yes"}[question.label]
        score = {"answer": answer, "label": question.label, "group": question.group}
        records.append({"task": "dash_b", "sample": question.key, "image_id": place, "finished": True, "score": score})
    from vlm_guard.eval.run.summary import MethodRecords

    found = {name: item.value for name, item in MethodRecords(records).estimates(100).items()}
    assert found["dash_b.mean"] == pytest.approx(0.5637583892617449)
    assert found["dash_b.all.true_negative_rate"] == pytest.approx(0.2639821029082774)
    assert found["dash_b.all.recall"] == pytest.approx(0.8635346756152126)
    assert found["dash_b.harmonic_mean"] == pytest.approx(0.40435353858172646)
    assert DashBTask.summarise(records, {"parser": "published"})["coco"]["questions"] == 2 * 216


@pytest.mark.parametrize(
    ("text", "answer"), [("Yes.", "yes"), ("I know: no", "no"), ("Eyes", "yes"), ("?", "unparsed")]
)
def test_dash_b_reads_answers_as_its_script(text, answer):
    assert read_published(text) == answer


def test_broken_dash_b_files_are_explained(tmp_path):
    (tmp_path / "dash_benchmark_pos.json").write_text("{}")
    for content, message in (
        ({"coco": {"dog": [3]}}, "must be a list of file names"),
        ({"coco": {"dog": {}}}, "must be a list of file names"),
        ([], "must hold an object of sources"),
        ({"coco": {"dog": ["../../x.png"]}}, "leads out of its folder"),
    ):
        (tmp_path / "dash_benchmark_neg.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_dash_b(tmp_path)


# ---- HallusionBench: category, subcategory, the figures' visual_input, questions of a set, number of such sets

HALLUSION = """
VD figure 1,2 1 1|VD figure 1,2 2 18|VD figure 1,2,2 2 1|VD illusion 1,2 1 7|VD illusion 1,2 2 10|VD illusion 1,2 3 11
VD illusion 1,2 4 3|VD math 1,2 3 18|VD ocr 1,2 2 20|VD ocr 1,2,2 3 1|VD video 1,2 1 1|VD video 1,2 2 2|VD video 1 3 1
VD video 1,2 3 2|VD video 1,2,2 3 1|VD video 1,2 4 5|VD video 1,2,2 4 8|VS chart 0,1 2 1|VS chart 0,1,2 2 7
VS chart 0,1,2 3 4|VS chart 0,1 4 1|VS chart 0,1,2 4 5|VS chart 0,2,2 4 2|VS chart 0,1 8 2|VS map 0,1,2 2 5
VS map 0,1,2 3 2|VS map 0,1,2 4 4|VS ocr 0,1,2 1 1|VS ocr 0,1,2 2 10|VS ocr 0,1,2 3 2|VS table 0,1,2 3 3
VS table 0,1,2,2 3 2|VS table 0,1,2 4 2|VS table 0,1,2,2 4 2|VS table 0,1,2,2 6 2
"""


def hallusion_records() -> list[dict]:
    records, sets = [], Counter()
    for kind in HALLUSION.replace("\n", "|").strip("|").split("|"):
        category, subcategory, figures, questions, count = kind.split()
        for _ in range(int(count)):
            number = sets[category, subcategory]
            sets[category, subcategory] += 1
            for figure, visual in enumerate(figures.split(",")):
                name = f"./{category}/{subcategory}/{number}_{figure}.png"
                for question in range(int(questions)):
                    record = {"category": category, "subcategory": subcategory, "set_id": str(number)}
                    record |= {"figure_id": str(figure), "question_id": str(question), "visual_input": visual}
                    record |= {"question": f"Is it {question}?", "gt_answer": str((question + figure) % 2)}
                    records.append(record | {"filename": None if visual == "0" else name})
    return records


@pytest.fixture(scope="module")
def hallusion(tmp_path_factory):
    path = tmp_path_factory.mktemp("hallusion") / "HallusionBench.json"
    path.write_text(json.dumps(hallusion_records()), encoding="utf-8")
    return read_hallusionbench(path)


def answered(questions, answer) -> list[dict]:
    numbers: dict[str, int] = {}
    return [
        {
            "task": "hallusionbench",
            "sample": f"hallusionbench/{question.key}",
            "image_id": numbers.setdefault(question.set_name, len(numbers)),
            "text": "",
            "score": {
                "answer": answer(place, question),
                "label": question.label,
                "category": question.category,
                "subcategory": question.subcategory,
                "figure": question.figure_id,
                "question": question.question_id,
                "visual_input": question.visual_input,
            },
        }
        for place, question in enumerate(questions)
    ]


def test_hallusionbench_has_the_releases_counts(hallusion):
    parts = Counter((question.category, question.subcategory) for question in hallusion)
    assert len(hallusion) == 1129 and sum(count for (name, _), count in parts.items() if name == "VD") == 591
    assert [parts["VD", name] for name in ("illusion", "math", "video", "figure", "ocr")] == [144, 108, 170, 80, 89]
    assert [parts["VS", name] for name in ("chart", "table", "map", "ocr")] == [206, 155, 96, 81]
    assert sum(question.image is None for question in hallusion) == 178
    summary = HallusionBenchTask.summarise(answered(hallusion, lambda _, item: item.label), {"parser": "strict"})
    wanted = {"sets": 167, "questions": 1129, "figures": 346, "groups": 455, "easy": 455, "hard": 430, "edited": 504}
    assert {name: summary[name] for name in wanted} == wanted
    assert all(summary[f"{name}_right"] == wanted[name] for name in ("questions", "figures", "groups", "easy", "hard"))


def test_hallusionbench_accuracies_by_their_definitions(hallusion):
    """Against the definitions written down once more, over all questions at once instead of set by set."""
    from vlm_guard.eval.run.summary import MethodRecords

    records = answered(hallusion, lambda place, item: ("yes", "no", "unparsed", item.label, item.label)[place % 5])
    right, figures, groups, easy, hard = [], {}, {}, {}, {}
    said_yes = 0
    for question, record in zip(hallusion, records):
        without = question.category == "VS" and question.figure_id == 0
        answer = record["score"]["answer"]
        good = answer == question.label or (without and answer == "unparsed")
        right.append(good)
        said_yes += good == (question.label == "yes")
        if not without:
            figures.setdefault((question.set_name, question.figure_id), []).append(good)
        groups.setdefault((question.set_name, question.question_id), []).append(good)
        level = hard if question.visual_input == 2 else easy
        level.setdefault((question.set_name, question.question_id), []).append(good)
    found = {
        name.removeprefix("hallusionbench."): item.value
        for name, item in MethodRecords([record | {"finished": True} for record in records]).estimates(100).items()
    }
    assert found["a_acc"] == pytest.approx(sum(right) / 1129)
    for name, wholes in (("f_acc", figures), ("q_acc", groups), ("easy", easy), ("hard", hard)):
        assert found[name] == pytest.approx(sum(map(all, wholes.values())) / len(wholes))
    labels = sum(question.label == "yes" for question in hallusion)
    assert found["yes_difference"] == pytest.approx((said_yes - labels) / 1129)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "VX"}, "must be VD or VS"),
        ({"visual_input": "3"}, "and 0, 1 or 2"),
        ({"filename": None}, "visual_input is 1, and the filename is"),
        ({"gt_answer": "2"}, "must be yes or no"),
        ({"set_id": "a"}, "'set_id' is 'a'"),
        ({"filename": "../../x.png"}, "leads out of its folder"),
        ({"question": None}, "'question' is None; it must be text"),
    ],
)
def test_broken_hallusionbench_files_are_explained(tmp_path, change, message):
    path = tmp_path / "HallusionBench.json"
    first = next(record for record in hallusion_records() if record["visual_input"] == "1")
    path.write_text(json.dumps([first | change]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_hallusionbench(path)
    path.write_text(json.dumps([first, first]), encoding="utf-8")
    with pytest.raises(ValueError, match="stands in the file before"):
        read_hallusionbench(path)


# ---- yes/no questions of one's own


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "needs image, question and answer"),
        ({"image": "a.png", "question": "?", "answer": "maybe"}, "must be yes or no"),
        ({"image": "/etc/passwd", "question": "?", "answer": "yes"}, "leads out of its folder"),
        ({"image": "a.png", "question": 3, "answer": "yes"}, "'question' is 3; it must be text"),
        ({"image": "a.png", "question": "?", "answer": "yes", "id": [1]}, "the id is"),
        ({"image": "a.png", "question": "?", "answer": "yes", "group": "a\nb"}, "the group"),
    ],
)
def test_broken_yes_no_files_are_explained(tmp_path, record, message):
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=f"asked.jsonl: record 1.*{message}"):
        read_yes_no(path)


def test_yes_no_files_are_read_by_any_of_their_names(tmp_path):
    path = tmp_path / "asked.jsonl"
    records = ({"text": "?", "label": "No", "question_id": 7}, {"query": "!", "gt_answer": 1})
    path.write_text("".join(json.dumps({"image": "a.png"} | record) + "\n" for record in records))
    first, second = read_yes_no(path)
    assert (first.key, first.label, first.text, second.key, second.label) == ("7", "no", "?", "2", "yes")
    assert first.image == second.image == tmp_path / "a.png"
    path.write_text('{"image": "a.png", "question": "?", "answer": true, "id": "x"}\n' * 2)
    with pytest.raises(ValueError, match="the id 'x', which stands in the file before"):
        read_yes_no(path)
