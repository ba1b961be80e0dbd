"""Fixtures of the zoo of tiny models (tests/zoo): ``zoo_model``, ``zoo_processor``, ``prompts``; and ``one_thread``."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from fast_selection import is_fast

from zoo import UNEQUAL_PROMPTS, Prompt, ZooModel, build, is_pristine, tiny_processor


def pytest_configure() -> None:
    """One thread of torch in the processes that tests start: they share the cores with the other workers."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `-m fast` selects, and put the cases of a family and a method side by side.

    They share what was computed before, and stay together when the workers divide the tests among them.
    """
    for item in items:
        if is_fast(item):
            item.add_marker(pytest.mark.fast)
    places = [place for place, item in enumerate(items) if item.path.name == "test_invariants.py" and _case(item)]
    for place, item in zip(places, sorted((items[place] for place in places), key=_case)):
        items[place] = item


def _case(item: pytest.Item) -> tuple[str, str] | None:
    """The family and the method of a test that is run for many of both."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return (parameters["zoo"], parameters["method"]) if {"zoo", "method"} <= parameters.keys() else None


def pytest_collection_finish() -> None:
    """Keep the garbage collector out of what stays until the end: the libraries and the list of tests.

    A full collection that walks through all of them takes about a second. What a test makes is looked after as ever,
    so that leaks are found.
    """
    if not gc.get_freeze_count():  # Once: a run of pytest inside a test must not freeze what the tests have made.
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def _zoo_cache() -> Iterator[dict[tuple[str, torch.dtype], ZooModel]]:
    cache: dict[tuple[str, torch.dtype], ZooModel] = {}
    yield cache
    cache.clear()


@pytest.fixture
def zoo_model(_zoo_cache: dict[tuple[str, torch.dtype], ZooModel]) -> Callable[..., ZooModel]:
    """``zoo_model(family, dtype=torch.float32)``: a model nobody has changed, built at most once unless one did.

    A model that an earlier test left changed is thrown away and built anew; the rotary offset that Qwen models
    keep from their last call is forgotten.
    """

    def get(family: str, dtype: torch.dtype = torch.float32) -> ZooModel:
        key = (family, dtype)
        if key not in _zoo_cache or not is_pristine(_zoo_cache[key].model):
            _zoo_cache[key] = build(family, dtype=dtype)
        for module in _zoo_cache[key].model.modules():
            if "rope_deltas" in vars(module):
                module.rope_deltas = None
        return _zoo_cache[key]

    return get


@pytest.fixture
def zoo_processor() -> Callable[..., object]:
    """``zoo_processor(family="llava")``: a new real processor with a 200-word tokenizer."""
    return tiny_processor


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One CPU thread of torch while a test runs: the tests themselves run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prompts() -> list[Prompt]:
    """Four rows of unequal length with 1, 2, 0 and 1 images; ``content`` is set, so each can also run alone."""
    return [
        *UNEQUAL_PROMPTS,
        Prompt(text_before=5, images=0, text_after=12, content=2),
        Prompt(text_before=2, images=1, text_after=7, content=3),
    ]
