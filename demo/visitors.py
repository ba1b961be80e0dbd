"""Who is waiting for an answer, so that a visitor can stop their own and nobody else's."""

import threading


class Visitors:
    """Stop signals by browser session."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def begin(self, session: str | None) -> threading.Event:
        """A fresh stop signal for what this session has just asked for; what it had running is stopped.

        Called before the request waits in the queue, so that waiting can be stopped too.
        """
        event = threading.Event()
        with self._lock:
            before = self._stops.get(session or "")
            self._stops[session or ""] = event
        if before is not None:
            before.set()
        return event

    def current(self, session: str | None) -> threading.Event:
        """The stop signal of what this session asked for last."""
        with self._lock:
            return self._stops.setdefault(session or "", threading.Event())

    def is_current(self, session: str | None, event: threading.Event) -> bool:
        """Whether `event` still is what this session waits for, not something it has turned away from."""
        return self.current(session) is event

    def stop(self, session: str | None) -> None:
        """Stop what this session waits for or runs."""
        self.current(session).set()

    def forget(self, session: str | None) -> None:
        """Stop and drop a session that has gone."""
        with self._lock:
            event = self._stops.pop(session or "", None)
        if event is not None:
            event.set()
