"""Which tests `pytest -m fast` runs: every room and every method, on one family of models, in less than a minute.

A file or folder of quick tests is added here; a single test in one that takes longer is marked `slow`.
"""

import pytest

FILES = (
    "demo/test_marked_answer.py",
    "demo/test_words.py",
    "eval/test_chair.py",
    "eval/test_chair_captions.py",
    "eval/test_coco.py",
    "eval/test_datasets.py",
    "eval/test_pope.py",
    "eval/test_pope_parsers.py",
    "eval/test_pope_questions.py",
    "eval/test_records.py",
    "eval/test_settings.py",
    "eval/test_statistics.py",
    "kernels/test_edit_of_keys.py",
    "kernels/test_edit_points.py",
    "kernels/test_limits.py",
    "methods",
    "test_feature_table.py",
    "test_generate_refusals.py",
    "test_guard.py",
    "test_head_and_layer_text.py",
    "test_house.py",
    "test_invariants.py",
    "test_method_text.py",
    "test_published_settings.py",
    "test_readme.py",
)
# Tests that go through all families run on this one.
FAMILY = "llava"


def is_fast(item: pytest.Item) -> bool:
    """Whether a test belongs to the selection."""
    path = item.path.as_posix().rpartition("/tests/")[2]
    listed = any(path == name or path.startswith(f"{name}/") for name in FILES)
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    # The family of a test is its parameter of that name, or the name of the model that a fixture builds.
    families = {parameters[name] for name in ("family", "zoo") if name in parameters}
    return listed and families <= {FAMILY} and item.get_closest_marker("slow") is None
