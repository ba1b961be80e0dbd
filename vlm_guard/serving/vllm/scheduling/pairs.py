"""Which requests belong together, and which of them may enter: bookkeeping of the scheduler, without vLLM."""

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Generic, Protocol, TypeVar


class Identified(Protocol):
    """What has an identity: vLLM's requests."""

    request_id: str


RequestType = TypeVar("RequestType", bound=Identified)


class Pairs(Generic[RequestType]):
    """Requests with their shadows.

    A pair enters only when the cache can hold both halves to their end beside the pairs that are in: half a pair would
    wait for ever for its other half.

    Args:
        blocks: how many blocks of the cache a request fills at its end.
        total: blocks of the cache.
    """

    def __init__(self, blocks: Callable[[RequestType], int], total: int) -> None:
        self._blocks = blocks
        self._total = total
        self._partner: dict[str, RequestType] = {}
        self._shadows: set[str] = set()
        self._reserved: dict[str, int] = {}
        self.held: deque[tuple[RequestType, RequestType]] = deque()

    def add(self, request: RequestType, shadow: RequestType) -> None:
        """A pair that waits to enter."""
        self._partner[request.request_id] = shadow
        self._partner[shadow.request_id] = request
        self._shadows.add(shadow.request_id)
        self.held.append((request, shadow))

    def admitted(self) -> Iterator[tuple[RequestType, RequestType]]:
        """The pairs that may enter now, in order."""
        while self.held:
            request, shadow = self.held[0]
            need = self._blocks(request) + self._blocks(shadow)
            if self._reserved and sum(self._reserved.values()) + need > self._total:
                return
            self.held.popleft()
            self._reserved[request.request_id] = need
            yield request, shadow

    def partner(self, request_id: str) -> RequestType | None:
        """The other half; None for a request without one."""
        return self._partner.get(request_id)

    def is_shadow(self, request_id: str) -> bool:
        """Whether the request is a second branch, of which clients know nothing."""
        return request_id in self._shadows

    def with_shadows(self, request_ids: Iterable[str]) -> list[str]:
        """The same requests, each followed by its other half."""
        found: dict[str, None] = {}
        for request_id in request_ids:
            found[request_id] = None
            other = self._partner.get(request_id)
            if other is not None:
                found[other.request_id] = None
        return list(found)

    def withdraw(self, request_ids: Iterable[str]) -> list[RequestType]:
        """Take pairs back that have not entered; returns their requests, without the shadows."""
        wanted, gone = set(request_ids), []
        kept: deque[tuple[RequestType, RequestType]] = deque()
        for request, shadow in self.held:
            if request.request_id in wanted:
                gone.append(request)
            else:
                kept.append((request, shadow))
        self.held = kept
        for request in gone:
            self.forget(request.request_id)
        return gone

    def forget(self, request_id: str) -> None:
        """A half has ended; the other is nobody's partner any more."""
        other = self._partner.pop(request_id, None)
        if other is not None:
            self._partner.pop(other.request_id, None)
            self._reserved.pop(other.request_id, None)
        self._reserved.pop(request_id, None)

    def drop_shadows(self, known: Container[str]) -> None:
        """Forget the shadows that are not among the `known` requests, nor wait to enter."""
        held = {shadow.request_id for _, shadow in self.held}
        self._shadows = {name for name in self._shadows if name in known or name in held}

    def requests(self) -> list[tuple[RequestType, RequestType]]:
        """Every pair whose halves are both there, the request first."""
        return [
            (self._partner[other.request_id], other)
            for other in self._partner.values()
            if self.is_shadow(other.request_id)
        ]
