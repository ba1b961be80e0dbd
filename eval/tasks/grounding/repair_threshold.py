"""Below what score repair takes mentions out, measured on captions whose truth is known.

The higher it is, the more of what is wrong goes, and the more of what is right: by its own score, and with sentences
that go as a whole. So the captions are repaired again with one threshold after the other, which needs no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_guard.grounding.mention import Mention, MentionFinder
from vlm_guard.grounding.repair import drop_doubtful, to_take_out
from vlm_guard.grounding.score import THRESHOLD, score_of

RECALL_SLACK = 0.004
"""By so much the recall of these captions may fall. Of others, by which the threshold was not chosen, it falls more: on
the scenes of docs/results.md about half a point."""


def repair_threshold(
    captions: Sequence[tuple[str, Mapping[str, Any]]], weights: Mapping[str, float], find: MentionFinder
) -> float:
    """The highest threshold, in hundredths, up to which repair costs at most `RECALL_SLACK` of recall.

    It is at most `THRESHOLD`: whatever is as likely as not stays.

    Args:
        captions: texts, and their `score` of the task "grounding" with the objects of the picture.
        weights: of the parts of a score.
        find: from a text to its mentions.
    """
    scored = [(text, set(score["objects"]), _mentions(score, weights)) for text, score in captions]
    allowed = RECALL_SLACK * sum(len(objects) for _, objects, _ in scored)
    found = [len(objects & {mention.noun for mention in find(text)}) for text, objects, _ in scored]
    before, best = sum(found), 0.0
    for hundredth in range(1, round(100 * THRESHOLD) + 1):
        below = hundredth / 100
        for place, (text, objects, mentions) in enumerate(scored):
            # The others are repaired as they were at the threshold in front of this one.
            if any(mention.score is not None and best <= mention.score < below for mention in mentions):
                repaired = drop_doubtful(text, to_take_out(mentions, below)).text
                found[place] = len(objects & {mention.noun for mention in find(repaired)})
        if before - sum(found) > allowed:
            break
        best = below
    return best


def _mentions(score: Mapping[str, Any], weights: Mapping[str, float]) -> list[Mention]:
    """The mentions of a record with their scores by these weights."""
    return [
        Mention(
            text=mention["text"],
            noun=mention["noun"],
            start=mention["start"],
            end=mention["end"],
            token_span=(mention["token_span"][0], mention["token_span"][1]),
            score=None if mention["score"] is None else score_of(mention["parts"], weights),
            verdict="unchecked",
        )
        for mention in score["mentions"]
    ]
