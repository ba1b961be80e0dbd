"""IRI: intermediate representation injection (FCCT and IRI, AAAI 2026, arXiv 2511.05923)."""

from vlm_guard.methods.iri.method import IRI

__all__ = ["IRI"]
