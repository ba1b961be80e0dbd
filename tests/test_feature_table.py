"""The table of what `generate` can do says only what a test shows."""

import ast
from pathlib import Path

import pytest

from feature import Feature
from generate_features import FEATURES, features_markdown

TESTS = Path(__file__).parent


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_every_named_test_exists(feature):
    for name in feature.tests:
        file, _, function = name.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_names_are_unique_and_untested_rows_say_so():
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)
    with pytest.raises(ValueError, match="not tested"):
        Feature(name="anything", tests=())
    rows = features_markdown().splitlines()
    assert len(rows) == len(FEATURES) + 5  # two lines of the head, a line for each part
    assert all(line.count("|") == 6 for line in rows)
