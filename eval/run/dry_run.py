"""`vlm-guard eval --dry-run`: one prompt as the model reads it, and how long the whole run will take."""

import json
from typing import Any

from rich.console import Console

from vlm_guard.eval.report.progress import span
from vlm_guard.eval.run.distributed import ProcessGroup
from vlm_guard.eval.run.engines.in_process import InProcess, attached
from vlm_guard.eval.run.generation import generate_batch, prepare_batch
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.run.setup import Evaluation, set_up
from vlm_guard.untrusted.printed_text import one_line, printable_json


def predict(run: Evaluation) -> dict[str, Any]:
    """One prompt of every task, and the time of the run from one measured batch of every task and method.

    The first batch is answered once untimed. Nothing is written. The prediction takes the batch for typical; first
    images that are answered shorter or longer than the rest make it wrong.

    Raises:
        ValueError: a server answers, or no picture of a first batch can be read.
    """
    engine, settings = run.engine, run.settings
    if not isinstance(engine, InProcess):
        raise ValueError("--dry-run times one batch in this process; beside --endpoint or --engine give --count 2")
    processor = engine.loaded.processor
    tasks: dict[str, Any] = {}
    for name, task in run.tasks.items():
        batches = [batch for batch in run.batches if batch.task is task]
        prepared = prepare_batch(batches[0].samples, task, engine.template, processor)
        if not prepared.samples:
            raise ValueError(f"no image of the first batch can be read: {next(iter(prepared.broken.values()))}")
        samples = sum(len(batch.samples) for batch in batches)
        predicted = {}
        example = ""
        for spec, guard in zip(engine.specs, engine.guards):
            arguments = (engine.loaded.model, processor, prepared.inputs, settings.decoding)
            with attached(guard):
                generate_batch(*arguments, 2, settings.seed)
                answered = generate_batch(*arguments, task.max_new_tokens, settings.seed)
            predicted[spec.label] = answered.seconds / len(answered.answers) * samples
            example = example or answered.answers[0].text
        tasks[name] = {
            "samples": samples,
            "batches": len(batches),
            "prompt": engine.template.render(processor, prepared.samples[0].prompt),
            "prompt_tokens": int(prepared.inputs["attention_mask"][0].sum()),
            "answer": example,
            "predicted_seconds": predicted,
        }
    total = sum(seconds for task in tasks.values() for seconds in task["predicted_seconds"].values())
    return {
        "data": run.data.describe(),
        "model": engine.model(),
        "tasks": tasks,
        "processes": run.group.size,
        "predicted_seconds": total / run.group.size,
    }


def print_dry_run(console: Console, settings: RunSettings, group: ProcessGroup, *, as_json: bool) -> None:
    """Print the prediction, on the first process only."""
    prediction = predict(set_up(settings, group))
    if not group.is_main:
        return
    if as_json:
        console.file.write(printable_json(json.dumps(prediction, indent=2, ensure_ascii=False)) + "\n")
        return
    data = prediction["data"]
    console.print(one_line(f"{prediction['model']['name']} on {data['name']}: {data['images']} images"), markup=False)
    for name, task in prediction["tasks"].items():
        console.print(f"\n[bold]{name}[/bold]  {task['samples']} prompts in {task['batches']} batches")
        console.print(f"  prompt ({task['prompt_tokens']} tokens with the image): {task['prompt']!r}", markup=False)
        console.print(f"  answer: {task['answer']!r}", markup=False)
        for label, seconds in task["predicted_seconds"].items():
            console.print(f"  {one_line(label)}: about {span(seconds)}", markup=False, highlight=False)
    console.print(f"\nall together about {span(prediction['predicted_seconds'])}; nothing was written")
