"""Putting things on a model, and taking off what is still ours."""

from collections.abc import Callable
from typing import Any

Step = Callable[[], Any]
GUARD_ATTRIBUTE = "_vlm_guard"
"""Name of the attribute under which a guarded model carries its guard."""
_ABSENT = object()


class Undo:
    """What was done to a model, to be undone in reverse order."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def __bool__(self) -> bool:
        """Whether there is anything to undo."""
        return bool(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, *steps: Step) -> None:
        """Remember how to undo what was just done."""
        self._steps.extend(steps)

    def run(self, down_to: int = 0) -> None:
        """Undo everything but the first `down_to` steps. Every step runs, also behind one that failed.

        Raises:
            Exception: what the first failing step raised; the others are noted on it.
        """
        failed: list[Exception] = []
        while len(self._steps) > down_to:
            try:
                self._steps.pop()()
            except Exception as error:
                failed.append(error)
        if failed:
            for other in failed[1:]:
                failed[0].add_note(f"undoing another step failed as well: {other!r}")
            raise failed[0]


def put_on(owner: Any, name: str, value: Any) -> Step:
    """Set an attribute in the instance's own dictionary, past `nn.Module`'s bookkeeping.

    Returns:
        What undoes it: the attribute that was there before comes back, unless somebody has replaced ours meanwhile,
        which then stays.
    """
    own = owner.__dict__
    before = own.get(name, _ABSENT)
    own[name] = value

    def undo() -> None:
        if own.get(name, _ABSENT) is not value:
            return
        if before is _ABSENT:
            del own[name]
        else:
            own[name] = before

    return undo
