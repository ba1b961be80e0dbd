"""Small data of every task's kind, drawn and written by tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from small_coco import make_coco_folder

TYPES = ("hallucination", "attribute-state", "attribute-number", "attribute-action", "relation")
MME_LINES = "Is there a dog in the image? Please answer yes or no.\tYes\nIs there a cat? Please answer yes or no.\tNo\n"


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(path)


def make_dash_b(folder: Path) -> Path:
    """A release of DASH-B with two objects and three pictures of each kind."""
    files = {"coco": {"backpack": ["1.png", "2.png"]}, "spurious": {"hair spray": ["3.png"]}}
    for kind in ("neg", "pos"):
        for source, objects in files.items():
            for name, pictures in objects.items():
                for seed, picture in enumerate(pictures):
                    draw(folder / "images" / kind / source / name / picture, seed)
        (folder / "images" / f"dash_benchmark_{kind}.json").write_text(json.dumps(files), encoding="utf-8")
    return folder


def make_hallusionbench(folder: Path) -> Path:
    """A release of HallusionBench with three sets: two figures each, or none and one."""
    records = []
    for number, category in enumerate(("VD", "VS", "VD")):
        for figure in (0, 1):
            pictured = category == "VD" or figure
            name = f"{category}/chart/{number}_{figure}.png"
            draw(folder / "hallusion_bench" / name, 7 * number + figure)
            for question in (0, 1):
                record = {"category": category, "subcategory": "chart", "set_id": str(number)}
                record |= {"figure_id": str(figure), "question_id": str(question), "question": "Is it a dog?"}
                record |= {"visual_input": str(figure + 1 if pictured else 0), "gt_answer": str(question)}
                records.append(record | {"filename": f"./{name}" if pictured else None})
    (folder / "HallusionBench.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def make_repope(folder: Path) -> Path:
    """RePOPE's three files about three pictures."""
    for strategy in ("random", "popular", "adversarial"):
        lines = []
        for number in range(6):
            image = f"COCO_val2014_{1 + number % 3:012d}.jpg"
            draw(folder / "val2014" / image, number)
            text = f"Is there a {('dog', 'cat')[number // 3]} in the image?"
            lines.append({"question_id": number + 1, "image": image, "text": text, "label": ("yes", "no")[number // 3]})
        path = folder / "annotations" / f"coco_repope_{strategy}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def make_sources(tmp_path: Path) -> dict[str, str]:
    """Small data for every task, made in a folder: what `--data` is given, by the task's name."""
    amber = tmp_path / "amber"
    questions, truths = [], []
    for number in (1, 2, 3):
        draw(amber / "image" / f"AMBER_{number}.jpg", number)
        for kind in TYPES:
            place = len(questions) + 1
            questions.append({"id": place, "image": f"AMBER_{number}.jpg", "query": f"Is there a dog ({place})?"})
            truths.append({"id": place, "type": f"discriminative-{kind}", "truth": "yes" if place % 3 else "no"})
    scenes = [{"id": 100 + n, "type": "generative", "truth": ["dog", "sky"], "hallu": ["cat"]} for n in (1, 2, 3)]
    truths += scenes
    (amber / "data" / "query").mkdir(parents=True)
    described = [{"id": 100 + n, "image": f"AMBER_{n}.jpg", "query": "Describe this image."} for n in (1, 2, 3)]
    (amber / "data" / "query" / "query_generative.json").write_text(json.dumps(described), encoding="utf-8")
    (amber / "data" / "relation.json").write_text('{"dog": ["puppy"], "sky": [], "cat": []}', encoding="utf-8")
    (amber / "data" / "safe_words.txt").write_text("sign\nline", encoding="utf-8")
    (amber / "data" / "query" / "query_discriminative.json").write_text(json.dumps(questions), encoding="utf-8")
    (amber / "data" / "annotations.json").write_text(json.dumps(truths), encoding="utf-8")
    for seed, name in enumerate(("existence", "count", "position", "color")):
        for number in range(2):
            draw(tmp_path / "mme" / name / f"{number}.jpg", 10 * seed + number)
            (tmp_path / "mme" / name / f"{number}.txt").write_text(MME_LINES, encoding="utf-8")
    records = []
    for number in range(4):
        draw(tmp_path / "choices" / f"{number}.png", number)
        record = {"question": "What is it?", "options": ["a dog", "a cat"], "answer": "a cat", "image": f"{number}.png"}
        records.append(record | ({"decided_by": "text"} if number % 2 else {}))
    (tmp_path / "choices" / "some.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    asked = [
        {
            "image": f"{number % 4}.png",
            "question": "Is there a dog in the image?",
            "answer": number % 2,
            "group": "dogs",
        }
        for number in range(8)
    ]
    (tmp_path / "choices" / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    coco = tmp_path / "coco"
    if not coco.exists():
        make_coco_folder(coco, images=3)
    mmhal = [
        {
            "question_type": "attribute",
            "image_id": f"{n}",
            "image_src": "",
            "image_content": ["Dog"],
            "question": "What?",
        }
        for n in range(4)
    ]
    for record in mmhal:
        record["gt_answer"] = "A dog."
    (tmp_path / "choices" / "response_template.json").write_text(json.dumps(mmhal), encoding="utf-8")
    captions = [{"image": f"{n}.png", "captions": ["A dog on the grass."]} for n in range(4)]
    (tmp_path / "choices" / "captions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in captions))
    (tmp_path / "words.tsv").write_text("Word\tConc.M\ndog\t4.9\nbear\t4.8\nidea\t1.6\n", encoding="utf-8")
    own = [{"image": f"{number}.png", "question": "Is it a cat?", "answer": "no"} for number in range(3)]
    (tmp_path / "choices" / "own.jsonl").write_text("".join(json.dumps(one) + "\n" for one in own))
    return {
        "caption": f"folder:{tmp_path / 'choices'}",
        "ask": f"questions:{tmp_path / 'choices' / 'own.jsonl'}",
        "chair": f"coco:{coco}",
        "pope": f"coco:{coco}",
        "grounding": f"coco:{coco}",
        "amber": f"amber:{amber}",
        "mme": f"mme:{tmp_path / 'mme'}",
        "grid2matrix": "grids:2x3",
        "modality_interference": f"mc:{tmp_path / 'choices' / 'some.jsonl'}",
        "mc": f"mc:{tmp_path / 'choices' / 'some.jsonl'}",
        "yesno": f"yesno:{tmp_path / 'choices' / 'asked.jsonl'}",
        "dash_b": f"dash_b:{make_dash_b(tmp_path / 'dash')}",
        "hallusionbench": f"hallusionbench:{make_hallusionbench(tmp_path / 'hallusion')}",
        "amber_generative": f"amber:{amber}",
        "object_halbench": f"coco:{coco}",
        "mmhal": f"mmhal:{tmp_path / 'choices'}",
        "openchair": f"openchair:{tmp_path / 'choices' / 'captions.jsonl'}",
        "repope": f"repope:{make_repope(tmp_path / 'corrected')}",
    }
