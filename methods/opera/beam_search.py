"""The beam search of OPERA: candidates with their penalties, finished answers, and the way back."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_guard.method import SearchCall
from vlm_guard.methods.opera.over_trust import FIRST_TOKENS, candidate_rows, trust_of

if TYPE_CHECKING:
    from vlm_guard.methods.opera.method import OPERA

# The score of a beam that only fills a place.
NO_BEAM = -1e9


@dataclass(frozen=True, kw_only=True, eq=False)
class Beams:
    """N beams after t tokens of the answer.

    Attributes:
        tokens: [N, t]. scores: [N], sums of log-probabilities.
        columns: [N, t], see `over_trust.Trust`.
        strongest: [N, steps], the strongest column of every step that led here.
    """

    tokens: Tensor
    scores: Tensor
    columns: Tensor
    strongest: Tensor

    @property
    def length(self) -> int:
        """T."""
        return self.tokens.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The continuations that the search goes on with: of which beam [N], by which token [N], and their scores [N].

    `place` [N] says which of the offered continuations each of them is.
    """

    beams: Tensor
    tokens: Tensor
    scores: Tensor
    place: Tensor


@dataclass(eq=False)
class OverTrustSearch:
    """One answer.

    Attributes:
        method: its options.
        call: the prompt, and passes behind it.
        finished: (score, answer) of finished beams, the best first.
        visited: the beams before each token of the answer, to return to.
        returns: how often the search has returned to each place.
        rejected: tokens that were chosen at a place before it was returned to.
    """

    method: "OPERA"
    call: SearchCall
    finished: list[tuple[float, Tensor]] = field(default_factory=list)
    visited: list[Beams] = field(default_factory=list)
    returns: Counter[int] = field(default_factory=Counter)
    rejected: dict[int, set[int]] = field(default_factory=dict)

    def run(self) -> tuple[Tensor, Tensor]:
        """The best answer [T] and its score."""
        device, count = self.call.input_ids.device, self.method.beams
        scores = torch.full((count,), NO_BEAM, device=device)
        scores[0] = 0
        empty = torch.zeros(count, 0, dtype=torch.long, device=device)
        beams: Beams | None = Beams(tokens=empty, scores=scores, columns=empty.float(), strongest=empty)
        logits = self.call.logits.expand(count, -1)
        last = beams
        while beams is not None and not self._is_done(beams):
            last = beams
            beams, logits = self._step(beams, logits)
        if not self.finished and last is not None:
            self._finish(float(last.scores[0]), last.tokens[0])
        score, answer = self.finished[0]
        return answer, torch.tensor(score, device=device)

    def _step(self, beams: Beams, logits: Tensor) -> tuple[Beams | None, Tensor]:
        """The beams with one more token, or returned to an earlier place, and the logits [N, V] behind them."""
        call, method = self.call, self.method
        self.visited[beams.length :] = [beams]
        ids = self._ids(beams)
        values, tokens = call.process(ids, logits.clone()).topk(method.candidates, dim=-1)
        behind = call.passes.candidates(tokens)
        rows = candidate_rows(call.found.rows.to(tokens.device), ids.shape[1])
        trust = trust_of(beams.columns, rows, call.visual, method.scale)
        strongest = trust.strongest.mode(dim=1).values
        history = torch.cat((beams.strongest, strongest[:, None]), 1)
        place = self._place_to_return(history, strongest, beams.length)
        if place is not None:
            return self._return(beams, place)
        totals = beams.scores[:, None] + (values - method.strength * trust.penalty()).log_softmax(-1)
        of_beam = torch.arange(method.beams, device=tokens.device).repeat_interleave(method.candidates)
        chosen = self._choose(ids, totals.flatten(), of_beam, tokens.flatten())
        if chosen is None:
            return None, logits
        picks = chosen.place % method.candidates
        call.passes.keep(chosen.beams, picks)
        columns = trust.columns[chosen.beams, picks]
        return self._grown(beams, chosen, columns, history), behind[chosen.beams, picks]

    def _return(self, beams: Beams, place: int) -> tuple[Beams | None, Tensor]:
        """Go back to the answer of `place` tokens and choose another token behind it, without a penalty."""
        call, kept = self.call, self.visited[place]
        if beams.length > place:
            self.rejected.setdefault(place, set()).update(beams.tokens[:, place].tolist())
        ids = self._ids(kept)
        logits = call.process(ids, call.passes.rewrite(kept.tokens))
        logits[:, sorted(self.rejected.get(place, ()))] = float("-inf")
        totals = (kept.scores[:, None] + logits.log_softmax(-1)).flatten()
        # More than the beams can need: `_choose` looks at the best of them only.
        best = totals.topk(min(totals.shape[0], self._looked_at()))
        of_beam, tokens = best.indices // logits.shape[-1], best.indices % logits.shape[-1]
        chosen = self._choose(ids, best.values, of_beam, tokens)
        if chosen is None:
            return None, logits
        grown = torch.cat((kept.tokens[chosen.beams], chosen.tokens[:, None]), 1)
        behind = call.passes.rewrite(grown)
        rows = candidate_rows(call.found.rows.to(grown.device)[:, -1:], ids.shape[1])
        columns = trust_of(kept.columns[chosen.beams], rows, call.visual, self.method.scale).columns[:, 0]
        return self._grown(kept, chosen, columns, kept.strongest), behind

    def _place_to_return(self, history: Tensor, strongest: Tensor, length: int) -> int | None:
        """How many tokens of the answer to keep, where all beams lean on the same one for long; None to go on.

        Args:
            history: [N, steps] the strongest columns of each beam, this step's among them.
            strongest: [N] this step's.
            length: of the answer, without the candidates.
        """
        common = int(strongest.mode().values)
        if common < FIRST_TOKENS or bool(((history == common).sum(-1) <= self.method.threshold).any()):
            return None
        place = max(common + 1, length - self.method.window)
        if self.returns[place] >= self.method.candidates:
            place -= 1
        if self.returns[place] >= self.method.candidates or place > length:
            return None
        self.returns[place] += 1
        return place

    def _choose(self, ids: Tensor, totals: Tensor, beams: Tensor, tokens: Tensor) -> Choice | None:
        """The best continuations that do not end the answer; those that do are finished. None when all end it.

        Args:
            ids: [N, P + t] the beams with their prompt.
            totals: [M] scores of the continuations.
            beams: [M] the beam of each.
            tokens: [M] its token.
        """
        count = self.method.beams
        best = totals.topk(min(totals.shape[0], self._looked_at()))
        place = best.indices
        grown = torch.cat((ids[beams[place]], tokens[place, None]), 1)
        ends = self.call.stops(grown)
        for rank in ends[:count].nonzero().flatten().tolist():
            self._finish(float(best.values[rank]), grown[rank, self.call.input_ids.shape[1] :])
        going = (~ends).nonzero().flatten()[:count]
        if not going.numel():
            return None
        scores = best.values[going]
        missing = count - going.numel()
        if missing:
            # One candidate a beam may leave fewer than there are places.
            going = torch.cat((going, going[:1].expand(missing)))
            scores = torch.cat((scores, scores.new_full((missing,), NO_BEAM)))
        place = place[going]
        return Choice(beams=beams[place], tokens=tokens[place], scores=scores, place=place)

    def _finish(self, total: float, answer: Tensor) -> None:
        """Keep a finished answer among the best."""
        score = total / max(1, answer.shape[0]) ** self.call.length_penalty
        self.finished.append((score, answer))
        self.finished.sort(key=lambda item: -item[0])
        del self.finished[self.method.beams :]

    def _is_done(self, beams: Beams) -> bool:
        """Whether there are enough finished answers, and by early stopping or by their scores no better one to come."""
        if len(self.finished) < self.method.beams:
            return False
        if self.call.early_stopping is True:
            return True
        return float(beams.scores.max()) / max(1, beams.length) ** self.call.length_penalty <= self.finished[-1][0]

    def _looked_at(self) -> int:
        """How many continuations are looked at, so that enough of them do not end the answer."""
        return 4 * self.method.beams

    def _ids(self, beams: Beams) -> Tensor:
        """[N, P + t] the beams with their prompt."""
        return torch.cat((self.call.input_ids.expand(self.method.beams, -1), beams.tokens), 1)

    @staticmethod
    def _grown(beams: Beams, chosen: Choice, columns: Tensor, history: Tensor) -> Beams:
        """The beams after the chosen tokens."""
        return Beams(
            tokens=torch.cat((beams.tokens[chosen.beams], chosen.tokens[:, None]), 1),
            scores=chosen.scores,
            columns=columns,
            strongest=history[chosen.beams],
        )
