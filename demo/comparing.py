"""The comparison: the same model answers twice, plain and then guarded, with the same seed."""

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlm_guard.demo.answering import Answer, AnsweringModel, GenerationSettings
from vlm_guard.demo.marked_answer import caption_score
from vlm_guard.demo.method_options import chosen_methods, setting_text
from vlm_guard.demo.pictures import Picture, PictureBrowser

USER_ERRORS = (ValueError, TypeError, OSError, ImportError)
"""What a visitor can cause and is told; the same as the command line's."""

MOST_TRIED = 25
STOPPED = "Stopped."
_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Two answers about one picture, perhaps still growing.

    Attributes:
        picture, prompt, settings: what was asked.
        methods: names of the methods of the guarded answer. options: their options as `wrap` takes them.
        plain, guarded: the answers; None before they begin.
        error: what went wrong, in the command line's words.
        number: distinguishes comparisons of one process.
    """

    picture: Picture
    prompt: str
    settings: GenerationSettings
    methods: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: Answer | None = None
    guarded: Answer | None = None
    error: str = ""
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def complete(self) -> bool:
        """Whether both answers are there in full."""
        return all(answer is not None and answer.ending != "running" for answer in (self.plain, self.guarded))

    @property
    def title(self) -> str:
        """The methods with the options that are not their defaults, as `wrap` takes them."""
        return setting_text(self.methods, self.options)

    def answer(self, side: str) -> Answer | None:
        """The answer of a side, "plain" or "guarded".

        Raises:
            ValueError: there is no such side.
        """
        if side not in ("plain", "guarded"):
            raise ValueError(f"there is no {side!r} answer; there are plain and guarded")
        return self.plain if side == "plain" else self.guarded


def compare(model: AnsweringModel, comparison: Comparison, stop: threading.Event | None = None) -> Iterator[Comparison]:
    """The comparison as it grows; the last one is complete, stopped, or has an error."""
    stop = stop or threading.Event()
    current = comparison
    try:
        # Methods are checked first: nobody should wait for a plain answer to be told about a wrong option.
        methods = chosen_methods(comparison.methods, comparison.options)
        if not stop.is_set():
            model.check(methods)
        for side, guarding in (("plain", ()), ("guarded", methods)):
            for answer in model.stream(current.picture.image, current.prompt, guarding, current.settings, stop):
                if side == "plain":
                    current = replace(current, plain=answer)
                else:
                    current = replace(current, guarded=answer)
                yield current
            if stop.is_set():
                return
    except USER_ERRORS as error:
        yield replace(current, error=str(error))


def verdict(comparison: Comparison) -> str:
    """One sentence on what happened, whichever way it went."""
    objects = comparison.picture.objects
    if not comparison.complete or comparison.plain is None or comparison.guarded is None:
        return ""
    same = comparison.plain.text == comparison.guarded.text
    if objects is None:
        return (
            "Both answers are the same." if same else "The answers differ; what is in this picture is not known here."
        )
    before, after = (caption_score(answer, objects) for answer in (comparison.plain, comparison.guarded))
    if before is None or after is None:
        return ""
    wrong = [len(score.hallucinated_mentions) for score in (before, after)]
    named = [len(score.recalled_objects) for score in (before, after)]
    if same:
        return f"Both answers are the same: {comparison.title} changed nothing here."
    if silent := [side for side, score in (("plain", before), ("guarded", after)) if not score.mentions]:
        # An answer of no sense hallucinates nothing either; that is no help.
        which = "Neither answer names a" if len(silent) == 2 else f"The {silent[0]} answer names no"
        return f"{which} known object, so nothing can be said."
    change = f"Hallucinated mentions: {wrong[0]} plain, {wrong[1]} guarded. Objects named: {named[0]} and {named[1]}."
    if wrong[1] < wrong[0] and named[1] >= named[0]:
        return f"The guard helped. {change}"
    if wrong[1] < wrong[0]:
        return f"Fewer hallucinations, but less said. {change}"
    if wrong[1] > wrong[0]:
        return f"The guard made it worse. {change}"
    return change


@dataclass(kw_only=True)
class Search:
    """Looking for a picture that shows a difference, and how many were looked at on the way.

    Attributes:
        tried: pictures answered so far. hallucinated: those whose plain answer hallucinates. helped, worsened: those
            where the guard has fewer or more hallucinated mentions. silent: those whose guarded answer names no known
            object; they count for neither.
    """

    tried: int = 0
    hallucinated: int = 0
    helped: int = 0
    worsened: int = 0
    silent: int = 0

    def count(self, comparison: Comparison) -> bool:
        """Take in a complete comparison; whether it shows a hallucination that the guard removes."""
        objects: Sequence[str] | None = comparison.picture.objects
        if comparison.plain is None or comparison.guarded is None or objects is None:
            return False
        before, after = (caption_score(answer, objects) for answer in (comparison.plain, comparison.guarded))
        if before is None or after is None:
            return False
        wrong, left = len(before.hallucinated_mentions), len(after.hallucinated_mentions)
        self.tried += 1
        self.hallucinated += wrong > 0
        self.silent += not after.mentions
        self.helped += left < wrong and bool(after.mentions)
        self.worsened += left > wrong
        # Saying nothing of what is there is no cure.
        return left < wrong and len(after.recalled_objects) >= max(1, len(before.recalled_objects))

    def summary(self, found: bool) -> str:
        """What the search saw, so that a found example is not taken for the rule."""
        tried = f"Looked at {self.tried} picture{'s' * (self.tried != 1)}"
        seen = (
            f"the plain answer hallucinated in {self.hallucinated}, the guard had fewer hallucinated mentions in "
            f"{self.helped} and more in {self.worsened}"
        )
        if self.silent:
            seen += f"; the guarded answer named no known object in {self.silent}"
        ending = "This one was picked because the guard helped." if found else "None was a clear gain."
        return f"{tried}: {seen}. {ending}"


def search_example(
    model: AnsweringModel,
    browser: PictureBrowser,
    start: Comparison,
    stop: threading.Event,
    most: int = MOST_TRIED,
) -> Iterator[tuple[Comparison, str, bool]]:
    """Go on from a picture until the guard removes a hallucination without naming fewer objects.

    Args:
        model: answers.
        browser: the pictures.
        start: the picture to go on from, and what to ask of the next ones.
        stop: set to end early.
        most: how many pictures are tried at most.

    Yields:
        The last complete comparison, a line on the search, and whether this is the example looked for.
    """
    search, picture, found = Search(), start.picture, False
    current = start
    for _ in range(min(most, len(browser.ids))):
        picture = browser.beside(picture, 1)
        asked = replace(start, picture=picture, number=next(_numbers))
        current = deque(compare(model, asked, stop), maxlen=1)[-1]
        if current.error or stop.is_set():
            yield current, "" if current.error else STOPPED, False
            return
        found = search.count(current)
        yield current, search.summary(found) if found else f"Searching: {search.tried} pictures so far.", found
        if found:
            return
    yield current, search.summary(found), False
