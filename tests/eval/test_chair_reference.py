"""CHAIR against the reference scripts' output on real captions; skipped where that data is not at hand."""

import gzip
import json
from pathlib import Path

import pytest

from vlm_guard.eval.data.coco import read_coco, read_object_sets
from vlm_guard.eval.tasks.chair import wordnet as chair_wordnet
from vlm_guard.eval.tasks.chair.captions import read_captions
from vlm_guard.eval.tasks.chair.scoring import ChairScorer, read_caption, summarise

DATA = Path(__file__).parents[3] / "shared" / "data"
MODES = [
    "pattern",
    pytest.param(
        "wordnet",
        marks=pytest.mark.skipif(bool(chair_wordnet.missing_nltk_data()), reason="NLTK's data is not installed"),
    ),
]

pytestmark = pytest.mark.skipif(not (DATA / "chair").is_dir(), reason="the reference data is not at hand")

COUNTS = {
    "hall_caps": "hallucinated_captions",
    "caps": "captions",
    "hall_words": "hallucinated_mentions",
    "coco_words": "mentions",
    "recalled": "recalled_objects",
    "gt": "objects",
    "gen_distinct": "mentioned_objects",
    "raw_words": "tokens",
}


@pytest.fixture(scope="module")
def objects():
    known = {}

    def load(mode):
        if mode not in known:
            known[mode] = read_object_sets(DATA / "chair" / f"gt_objects_{mode}.json.gz")
        return known[mode]

    return load


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["greedy", "beam5", "ours"])
def test_counts_rates_and_mentions_of_every_caption(name, mode, objects):
    scorer = ChairScorer(objects(mode), mode)
    records = read_captions(DATA / "captions" / "llava-1.5" / f"{name}.jsonl")
    scores = [scorer.score(record.image_id, record.caption) for record in records]
    total = summarise(scores, mode).to_dict()

    reference = json.loads((DATA / "chair" / "reference_numbers.json").read_text())[f"llava-1.5/{name}.jsonl"]
    counts = reference[f"{mode}_counts"]
    assert {key: total[COUNTS[key]] for key in counts} == counts
    rates = {"CHAIRs": "chair_s", "CHAIRi": "chair_i", "Recall": "recall", "Precision": "precision", "F1": "f1"}
    for key in rates.keys() & reference[mode].keys():
        assert total[rates[key]] == pytest.approx(reference[mode][key], abs=1e-12)
    assert total["mean_words"] == pytest.approx(reference["mean_ws_words"], abs=1e-9)

    path = DATA / "chair" / "percaption" / f"captions__opera__llava-1.5__{name}.jsonl.gz"
    with gzip.open(path, "rt") as file:
        per_caption = [json.loads(line)[mode] for line in file]
    assert len(per_caption) == len(scores)
    for score, expected in zip(scores, per_caption):
        assert [mention.node for mention in score.mentions] == expected["nodes"]
        assert [mention.node for mention in score.hallucinated_mentions] == [pair[1] for pair in expected["hall"]]
        assert score.tokens == expected["words"]
        for mention in score.mentions:
            assert score.caption[mention.start : mention.end] == mention.text


@pytest.mark.parametrize("mode", MODES)
def test_ground_truth_rebuilt_from_annotations(mode, objects):
    folder = read_coco(DATA / "coco" / "tiny_coco", mode)
    assert len(folder.images) == 100
    assert not folder.missing_images
    assert {number: set(names) for number, names in folder.objects.items()} == {
        number: set(objects(mode)[number]) for number in folder.objects
    }


@pytest.mark.parametrize("mode", MODES)
def test_reference_captions_mention_only_objects_of_the_ground_truth(mode, objects):
    captions = json.loads((DATA / "coco" / "val2017" / "captions_val2017.json").read_text())["annotations"]
    known = objects(mode)
    chosen = captions if mode == "pattern" else captions[::10]
    for annotation in chosen:
        mentions = read_caption(annotation["caption"], mode).mentions
        assert {mention.node for mention in mentions} <= set(known[annotation["image_id"]])
