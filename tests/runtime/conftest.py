"""Fixtures: ``llava``, and ``fresh`` for tests that change the model."""

import copy

import pytest


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


@pytest.fixture
def fresh(zoo_model):
    """A model of one's own, for tests that change it."""
    zoo = zoo_model("llava")
    return copy.copy(zoo), copy.deepcopy(zoo.model)
