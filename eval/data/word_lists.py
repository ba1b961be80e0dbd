"""The word lists and sentences that are shipped beside this file, as JSON."""

import json
from importlib.resources import files
from typing import Any


def read_word_list(name: str) -> Any:
    """The content of a shipped JSON file.

    Args:
        name: the file's name, such as "coco_objects.json".
    """
    return json.loads(files("vlm_guard.eval.data").joinpath(name).read_text(encoding="utf-8"))
