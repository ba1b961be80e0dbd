"""CHAIR on worked examples: every number here was counted by hand."""

import json
import math

import pytest

from vlm_guard.eval.tasks.chair.scoring import ChairScorer, Mention, read_caption, repeated_share, summarise

OBJECTS = {1: ["dog", "person", "chair"], 2: ["cat"], 3: []}


@pytest.fixture
def scorer():
    return ChairScorer(OBJECTS)


def nodes(caption):
    return [mention.node for mention in read_caption(caption).mentions]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man and two women with puppies.", ["person", "person", "dog"]),
        ("A red bus and two buses.", ["bus"]),  # the singular of "bus" is "bu" in the reference rules
        ("A tennis racket.", ["tennis racket"]),  # by "racket": "tennis" became "tenni"
        ("A glass of wine, a wine glass.", ["wine glass"]),
        ("A stop sign, a hot dog and a dog.", ["stop sign", "hot dog", "dog"]),
        ("A baby elephant beside a home plate.", ["elephant"]),
        ("The train track.", []),
        ("A toilet with the seat up, a chair.", ["toilet", "chair"]),
        ("The toilet seat.", ["toilet"]),
        ("A cup/mug.", []),
        ("Cell-phone, CELL PHONE, cell\nphone.", ["cell phone", "cell phone"]),
        ("An orange shirt on a stool.", ["orange", "chair"]),
        ("Collies and doggies, a collie and a doggie.", ["dog", "dog"]),
        ("DOG DOG dog", ["dog", "dog", "dog"]),
        ("", []),
        ("   \n ", []),
        ("Nothing at all.", []),
        ("狗 and café, a dog.", ["dog"]),
    ],
)
def test_mentions(caption, expected):
    assert nodes(caption) == expected


def test_mentions_have_their_place_in_the_caption(scorer):
    caption = "Two Men — in a café — ride a Motor  Cycle; the man’s dogs İwatch a hot dog."
    mentions = scorer.mentions(caption)
    assert [caption[mention.start : mention.end] for mention in mentions] == [mention.text for mention in mentions]
    assert [(mention.node, mention.text) for mention in mentions] == [
        ("person", "Men"),
        ("motorcycle", "Motor  Cycle"),
        ("person", "man"),
        ("dog", "dogs"),
        ("hot dog", "hot dog"),
    ]


def test_one_caption_by_hand(scorer):
    score = scorer.score(1, "A dog and a cat. The dog and a kitten sleep.")
    assert [mention.node for mention in score.mentions] == ["dog", "cat", "dog", "cat"]
    assert score.hallucinated == (False, True, False, True)
    assert score.hallucinated_mentions[0] == Mention(node="cat", text="cat", start=12, end=15)
    assert (score.chair_s, score.chair_i) == (1, 0.5)
    assert score.recall == pytest.approx(1 / 3)
    assert (score.tokens, score.words) == (13, 11)
    assert score.objects == ("chair", "dog", "person")


def test_a_merged_pair_is_one_token_and_a_dropped_seat_still_counts(scorer):
    assert scorer.score(1, "a stop sign").tokens == 2
    assert scorer.score(1, "toilet and seat").tokens == 3


def test_a_caption_without_mentions_and_an_image_without_objects(scorer):
    empty = scorer.score(1, "")
    assert (empty.chair_s, empty.chair_i, empty.recall, empty.tokens, empty.words) == (0, 0, 0, 0, 0)
    nothing_there = scorer.score(3, "a dog")
    assert (nothing_there.chair_s, nothing_there.chair_i, nothing_there.recall) == (1, 1, 0)


def test_the_corpus_by_hand(scorer):
    scores = [
        scorer.score(1, "A dog and a cat. The dog and a kitten sleep."),
        scorer.score(2, "A cat."),
        scorer.score(2, "Nothing."),
    ]
    total = summarise(iter(scores))
    assert (total.captions, total.images, total.hallucinated_captions) == (3, 2, 1)
    assert (total.mentions, total.hallucinated_mentions) == (5, 2)
    assert (total.mentioned_objects, total.recalled_objects, total.objects) == (3, 2, 5)
    assert total.chair_s == pytest.approx(1 / 3)
    assert total.chair_i == pytest.approx(2 / 5)
    assert total.recall == pytest.approx(2 / 5)
    assert total.precision == pytest.approx(2 / 3)
    assert total.f1 == pytest.approx(1 / 2)
    assert total.mean_tokens == pytest.approx((13 + 3 + 2) / 3)
    assert total.mean_words == pytest.approx((11 + 2 + 1) / 3)


def test_a_summary_of_nothing_is_zero_not_an_error():
    total = summarise([])
    assert total.captions == 0
    assert all(not math.isnan(value) for value in total.to_dict().values() if isinstance(value, float))
    assert total.chair_i == total.recall == total.f1 == 0


def test_only_mentions_of_absent_objects(scorer):
    total = summarise([scorer.score(2, "a dog")])
    assert (total.chair_i, total.precision, total.recall, total.f1) == (1, 0, 0, 0)


def test_records_and_summaries_are_json(scorer):
    score = scorer.score(1, "A dog and a cat.")
    record = json.loads(json.dumps(score.to_dict()))
    assert record["mentions"][1] == {"node": "cat", "text": "cat", "start": 12, "end": 15, "hallucinated": True}
    assert json.loads(json.dumps(summarise([score]).to_dict()))["chair_i"] == 0.5


def test_repetition():
    assert repeated_share([]) == repeated_share(["a", "b", "c"]) == 0
    assert repeated_share(["a", "b", "c", "d"]) == 0
    assert repeated_share(["a"] * 8) == pytest.approx(1 - 1 / 5)
    assert repeated_share([*"abcdabcd"]) == pytest.approx(1 - 4 / 5)


def test_a_caption_of_ten_thousand_tokens(scorer):
    score = scorer.score(1, "A dog sits on a chair. " * 1500)
    assert score.tokens == 7 * 1500
    assert len(score.mentions) == 3000
    assert score.repeated_4_grams > 0.99


def test_an_unknown_image_is_an_error(scorer):
    with pytest.raises(ValueError, match="image 99 is not among the 3 images"):
        scorer.score(99, "a dog")


def test_objects_must_be_categories():
    with pytest.raises(ValueError, match="'puppy' is no MSCOCO category"):
        ChairScorer({1: ["puppy"]})


def test_the_mode_must_be_known():
    with pytest.raises(ValueError, match="'patern'; it must be one of pattern, wordnet"):
        ChairScorer(OBJECTS, "patern")
