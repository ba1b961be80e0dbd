"""What answers took, as tables show it. Where a server answered, the figures are its client's, and are called so."""

from collections.abc import Sequence

from vlm_guard.eval.run.results import Cost, MethodResult

_IN_PROCESS = ("seconds", "tokens/s", "peak MiB")
_REQUESTS = ("client's seconds", "client's tokens/s a request", "peak MiB")


def cost_heads(methods: Sequence[MethodResult]) -> tuple[str, str, str]:
    """The heads of the columns of `cost_cells`."""
    return _REQUESTS if any(method.cost.timed == "request" for method in methods) else _IN_PROCESS


def cost_cells(cost: Cost) -> tuple[str, str, str]:
    """Seconds, tokens a second and peak memory; of a server's memory nothing is known."""
    memory = "-" if cost.timed == "request" else f"{cost.peak_memory_bytes / 2**20:.0f}"
    return f"{cost.seconds:.1f}", f"{cost.tokens_per_second:.0f}", memory
