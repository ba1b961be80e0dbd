"""The tab "How sure": scores of both answers, their marks, the box, and what repair leaves."""

import math

import pytest

from vlm_guard.demo.answering import GenerationSettings
from vlm_guard.demo.comparing import Comparison, compare
from vlm_guard.demo.sure_panel import SURE_HINT, Checked, mention_html, sure_html, sure_words_html
from vlm_guard.eval.scenes.recognise import SCORES_SAY_NOTHING
from vlm_guard.grounding import Box, Mention
from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.presence import with_article
from vlm_guard.grounding.repair import Removed, Repaired, drop_doubtful
from vlm_guard.grounding.score import repair_below_of


@pytest.fixture
def compared(context):
    """One picture answered twice."""
    start = Comparison(
        picture=context.first_picture,
        prompt="Please describe this image in detail.",
        settings=GenerationSettings(max_new_tokens=60),
        methods=("pai",),
        options={"pai.gain": 0.4},
    )
    return list(compare(context.model, start))[-1]


def test_both_answers_are_scored_and_shown(context, compared):
    checked = context.check(compared)
    assert checked.number == compared.number
    sides = {"plain": compared.plain, "guarded": compared.guarded}
    for side, answer in sides.items():
        grounded = checked.answers[side]
        assert grounded.text == answer.text and grounded.mentions
        shown = sure_words_html(side, answer, grounded, 0)
        assert shown.count("<button") == len(grounded.mentions) == shown.count('class="vg-sign"')
        assert shown.count("vg-selected") == 1
        for number in range(len(grounded.mentions)):
            assert f'data-side="{side}" data-word="{number}"' in shown
        mention = grounded.mentions[0]
        detail = mention_html(compared.picture.image, mention)
        assert (
            f"score {mention.score:.2f}" in detail
            and f"Is there {with_article(mention.noun)} in the image?" in detail
            and "<img" in detail
        )
    page = sure_html(sides, checked, repair=False)
    assert "Repaired" not in page and "doubtful" in page and "say nothing" not in page
    assert sure_html(sides, checked, False, None, SCORES_SAY_NOTHING).count("they say nothing about it") == 1
    repaired = sure_html(sides, checked, repair=True)
    assert repaired.count("Repair") == 2, "one line below each answer"
    below = repair_below_of(context.profile, ("lens", "self_check"))
    assert repaired.count(f"below {below:.2f} only") == 2
    mention = checked.answers["plain"].mentions[0]
    weights = context.score_weights(mention)
    total = weights["bias"] + sum(weights[name] * value for name, value in mention.parts.items())
    assert mention.score == pytest.approx(1 / (1 + math.exp(-total)))
    assert f"x = {weights['bias']:.2f}" in mention_html(compared.picture.image, mention, weights)
    assert "not fitted" in mention_html(compared.picture.image, mention)


@pytest.mark.parametrize(
    ("below", "said"), [(0.42, "below 0.42 only. A doubtful mention"), (0.5, "below 0.50: all that is doubtful.")]
)
def test_what_repair_takes_out_is_said(compared, below, said):
    """The limit is the model's; where it is that of a verdict, nothing doubtful stays."""
    for removed in ((), (Removed(text="a cat", start=0, end=5, nouns=("cat",), how="item"),)):
        repaired = Repaired(text="A dog.", removed=removed, below=below)
        grounded = GroundedAnswer(text="A dog.", mentions=[], repaired=repaired)
        checked = Checked(number=1, answers={"plain": grounded, "guarded": grounded})
        assert said in sure_html({"plain": compared.plain}, checked, repair=True)


def test_nothing_is_shown_before_there_are_scores(compared, context):
    assert sure_html({}, None, repair=True) == SURE_HINT
    with pytest.raises(ValueError, match="no answer to check yet"):
        context.check(Comparison(picture=compared.picture, prompt="x", settings=compared.settings, methods=()))


def test_words_of_a_model_are_text_on_the_page(compared):
    """What a model or a visitor wrote never becomes markup."""
    text = "<b>dog</b>"
    nasty = Mention(
        text=text, noun=text, start=0, end=len(text), token_span=(0, 1), score=0.1, verdict="doubtful",
        parts={"self_check": -3.0}, box=Box(image=0, left=0, top=0, right=1, bottom=1),
    )  # fmt: skip
    assert "<b>" not in mention_html(compared.picture.image, nasty)
    grounded = GroundedAnswer(text=text, mentions=[nasty], repaired=drop_doubtful(text, [nasty]))
    both = Checked(number=1, answers={"plain": grounded, "guarded": grounded})
    assert "<b>" not in sure_html({"plain": compared.plain}, both, repair=True)
