"""The built-in model and its guards, as a server has them: without weights."""

import pytest

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.served_guards import ServedGuards, meta_model


@pytest.fixture(scope="session")
def served():
    """`served("pai;m3id")`: the guards of a declaration, of the built-in model."""
    model, processor = meta_model(str(BUILTIN_DIR))
    return lambda text, default=None: ServedGuards(Declaration.read(text, default), model, processor)
