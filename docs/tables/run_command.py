"""The command that made a run, as its results.json tells it: what is not said has the default."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.eval.tasks.shared.settings import flag_of


def run_command(results: Mapping[str, Any]) -> str:
    """`vlm-guard eval ... --out DIR` with every option of a run that changes its numbers."""
    data = results["data"]
    named = [f"--method {entry['label']}" for entry in results["methods"]]
    parts = ["vlm-guard eval", *_model(results["model"]), f"--data {data['name']} --count {data['images']}"]
    parts += [f"--task {','.join(results['tasks'])}", *_tasks(results["tasks"])]
    size = results["decoding"]["batch_size"]
    if size != RunSettings.model_fields["batch_size"].default:
        parts.append(f"--batch-size {size}")
    return " ".join([*parts, *named, "--out DIR"])


def _model(model: Mapping[str, Any]) -> Iterator[str]:
    """Its name, and the flags for other weights than the float32 ones of a CPU, as they lie in memory."""
    yield f"--model {model['name']}"
    if model["dtype"] != "float32":
        yield f"--dtype {model['dtype']}"
    if model.get("packed_weights"):
        yield "--pack-weights"


def _tasks(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Token limits, POPE's number of questions and the repair, where they are not the defaults."""
    for name, settings in tasks.items():
        known = task_class(name).Settings.model_fields
        for key in ("max_new_tokens", "repair"):
            if key in settings and settings[key] != known[key].default:
                flag = flag_of(known[key])
                yield f"{flag} {settings[key]}" if flag else f"--set {name}.{key}={settings[key]}"
        built = re.match(r"built, (\d+) per image", settings.get("origin", ""))
        if built is not None and built[1] != "6":
            yield f"--pope-per-image {built[1]}"
