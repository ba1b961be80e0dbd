"""What the methods of a guard found out in its last generation, for those who show it beside the answer."""

from vlm_guard.guard import Guard
from vlm_guard.method.findings import Finding, FindingsCall


def findings_of(guard: Guard) -> tuple[Finding, ...]:
    """The findings of every method, in their order (first row of the batch); none before the first generation."""
    found: list[Finding] = []
    state = guard.state
    if state is None:
        return ()
    for bound in guard.methods:
        kept, layers = guard.findings(bound.method.name), tuple(sorted(bound.layers))
        found += bound.method.findings(FindingsCall(state=state, kept=kept, layers=layers))
    return tuple(found)


def why_unchanged(guard: Guard) -> str:
    """Why an answer came out as the plain model's, as far as the methods know it; asked right after that answer."""
    if not guard.methods:
        return "it has nothing to do on this model"
    if all(bound.method.edits_attention() and not bound.layers for bound in guard.methods):
        return "it edits no layer of this model"
    told = " ".join(finding.text for finding in findings_of(guard) if type(finding) is Finding)
    return told or "no token of the answer came out differently"
