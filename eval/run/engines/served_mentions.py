"""Scores of mentions from a server with guards (`POST /v1/vlm_guard/mentions`): what it is sent and what it says."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm_guard.eval.run.received import first_problem
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.tasks.base import Task
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.mention import Box, Mention
from vlm_guard.grounding.repair import Removed, Repaired
from vlm_guard.grounding.settings import Grounding
from vlm_guard.untrusted.printed_text import shown

MENTIONS = "/vlm_guard/mentions"


def scores_mentions(task: str) -> bool:
    """Whether a task has the mentions of its answers scored."""
    return task_class(task).grounding is not Task.grounding


def refuse_unserved(settings: RunSettings, measured: Sequence[str], beside: str) -> None:
    """Refuse settings of mentions that only transformers follows.

    Args:
        settings: of the run.
        measured: the parts of a score that the engine measures.
        beside: the option that chose the engine.

    Raises:
        ValueError: there is one; the message says which.
    """
    for task in filter(scores_mentions, settings.tasks):
        wanted = settings.of_task(task)
        lacking = [part for part in getattr(wanted, "parts", ()) if part not in measured]
        unserved = {
            f"parts={lacking[0] if lacking else ''}": bool(lacking),
            "repair=rewrite": getattr(wanted, "repair", None) == "rewrite",
            "lens_layers": bool(getattr(wanted, "lens_layers", ())),
        }
        found = next((name for name, given in unserved.items() if given), None)
        if found is not None:
            raise ValueError(
                f"{task}.{found} cannot be used beside {beside}: it measures {', '.join(measured)}, reads the layers "
                f"that the model's profile names, and writes no sentence again; run it without {beside}"
            )


class _Received(BaseModel):
    model_config = ConfigDict(strict=True)


class _Box(_Received):
    image: int
    left: float
    top: float
    right: float
    bottom: float


class _Mention(_Received):
    text: str
    noun: str
    start: int
    end: int
    token_span: tuple[int, int]
    score: float | None
    verdict: Literal["grounded", "doubtful", "unchecked"]
    parts: dict[str, float]
    box: _Box | None

    model_config = ConfigDict(strict=False)


class _Removed(_Received):
    text: str
    start: int
    end: int
    nouns: list[str]
    how: str


class _Repaired(_Received):
    text: str
    removed: list[_Removed]
    below: float | None


class _Reply(_Received):
    answer: str
    mentions: list[_Mention]
    repaired: _Repaired | None


def mentions_body(
    asked: Mapping[str, Any], text: str, token_ids: Sequence[int] | None, settings: Grounding
) -> dict[str, Any]:
    """The request about an answer.

    Args:
        asked: the request that it answers.
        text: the answer, without blanks around it.
        token_ids: of the answer.
        settings: how mentions are found, scored and taken out.
    """
    found = [mention._asdict() for mention in settings.find(text)]
    return {
        "model": asked["model"],
        "messages": [*asked["messages"], {"role": "assistant", "content": text}],
        "token_ids": token_ids,
        "mentions": found,
        "parts": list(settings.parts),
        "question": settings.question,
        "threshold": settings.threshold,
        "repair": settings.repair,
        "repair_below": settings.repair_below,
    }


def read_mentions(reply: Any, base: str, key: str) -> GroundedAnswer:
    """What the server says.

    Raises:
        ValueError: it is nothing that can be read.
    """
    try:
        found = _Reply.model_validate(reply)
    except ValidationError as error:
        raise ValueError(
            f"{base}{MENTIONS} says of {shown(key)} what cannot be read ({first_problem(error)}); is the server of "
            "another version?"
        ) from None
    mentions = [
        Mention(**{**vars(one), "box": None if one.box is None else Box(**vars(one.box))}) for one in found.mentions
    ]
    repaired = None
    if found.repaired is not None:
        removed = tuple(Removed(**{**vars(one), "nouns": tuple(one.nouns)}) for one in found.repaired.removed)
        repaired = Repaired(text=found.repaired.text, removed=removed, below=found.repaired.below)
    return GroundedAnswer(text=found.answer, mentions=mentions, repaired=repaired)
