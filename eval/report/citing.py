"""What to cite for a run or for methods by name, and a paragraph that says what a run did."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.report.bibtex import SOFTWARE_KEY, Paper, latex_text, papers_in, software_entry, without_repeats
from vlm_guard.eval.report.tables import decoding_text
from vlm_guard.eval.run.results import MethodResult, RunResults, read_results, run_folder
from vlm_guard.eval.tasks.shared.registry import task_class, task_names
from vlm_guard.method.index import described_method
from vlm_guard.method.method_text import is_outside, parse_method_text
from vlm_guard.method.model_choice import AUTO
from vlm_guard.method.registry import method_names
from vlm_guard.untrusted.printed_text import one_line

_HEAD = "% Titles, venues and arXiv numbers are those that vlm_guard has; it knows no authors (arXiv has them)."


@dataclass(frozen=True, kw_only=True)
class Cited:
    """What to cite.

    Attributes:
        papers: of the methods and tasks, each once.
        unknown: a sentence for what has no paper that is known here.
        runs: the finished runs among what was given.
    """

    papers: Sequence[Paper]
    unknown: Sequence[str]
    runs: Sequence[RunResults]

    def bibtex(self) -> str:
        """The entries of the software and of all papers; every other line is a comment."""
        comments = [_HEAD, *(f"% {_comment(sentence)}" for sentence in self.unknown)]
        return "\n\n".join(["\n".join(comments), software_entry(), *(paper.entry() for paper in self.papers)]) + "\n"

    def paragraphs(self) -> str:
        """One paragraph of LaTeX for every run, empty where none was given."""
        texts = [run_text(run, self.papers) for run in self.runs]
        return "\n\n".join(textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False) for text in texts)

    def as_text(self) -> str:
        """Entries and, as comments behind them, paragraphs: one file that BibTeX reads."""
        if not self.runs:
            return self.bibtex()
        lines = ["% What was run, for the paper (vlm-guard cite --only text gives it without these signs):"]
        lines += [f"% {_comment(line)}".rstrip() for line in self.paragraphs().splitlines()]
        return self.bibtex() + "\n" + "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    # BibTeX begins an entry at this sign wherever it stands.
    return one_line(text).replace("@", r"{\char64}")


def cited_by(given: Sequence[str]) -> Cited:
    """What to cite for run folders (or the files of answers beside them), methods and tasks.

    Args:
        given: names or lines of methods ("pai:gain=0.4+var"), names of tasks, or paths. A name comes before a path.

    Raises:
        ValueError: something is none of these. FileNotFoundError: a folder holds no finished run.
    """
    runs: list[RunResults] = []
    methods: dict[str, None] = {}
    tasks: dict[str, None] = {}
    for text in given:
        if text in task_names() and text not in method_names():
            tasks[text] = None
        elif text not in method_names() and Path(text).exists():
            run = read_results(run_folder(Path(text)))
            runs.append(run)
            methods |= dict.fromkeys(str(item["method"]) for method in run.methods for item in method.methods)
            tasks |= dict.fromkeys(run.tasks)
        else:
            methods |= dict.fromkeys(_named(text))
    papers: list[Paper] = []
    unknown = []
    for name in methods:
        found = papers_of_method(name)
        papers += found
        if not found and name != "none":
            unknown.append(f"{name}: no paper of this method is known here")
    for name in tasks:
        found = papers_of_task(name)
        papers += found
        if not found:
            source = task_class(name).source if name in task_names() else "this task is not installed here"
            unknown.append(f"{name}: {source or 'no paper of this task is known here'}")
    return Cited(papers=without_repeats(papers), unknown=unknown, runs=runs)


def _named(text: str) -> list[str]:
    """The methods of a line; a line of none is refused."""
    parts = [part.reference for part in parse_method_text(text, [*method_names(), AUTO])]
    for name in parts:
        if name == AUTO:
            raise ValueError("'auto' is what a model's profile chooses; give the run's folder, which says what it was")
        if name not in method_names() and not is_outside(name):
            try:
                described_method(name)
            except ValueError as error:
                tasks = ", ".join(task_names())
                raise ValueError(f"{one_line(str(error))}. Nor is it a folder of a run, or a task ({tasks})") from None
    return parts


def papers_of_method(name: str) -> list[Paper]:
    """The papers of a method by its name; none for methods of the user's own, which are not imported."""
    return papers_in(described_method(name)["paper"], name) if name in method_names() else []


def papers_of_task(name: str) -> list[Paper]:
    """The papers of a task by its name; none where its package is not installed."""
    return papers_in(task_class(name).source, name) if name in task_names() else []


def run_text(run: RunResults, papers: Sequence[Paper]) -> str:
    """What a run did, as one paragraph of LaTeX: every setting that decides its numbers.

    Args:
        run: the results.
        papers: what a citation may name; a paper that is not among them is not cited.
    """
    keys = {paper.eprint: paper.key for paper in papers}
    sentences = [
        f"All answers were made and scored with vlm\\_guard "
        f"{latex_text(str(run.environment['versions'].get('vlm_guard', '')))}~\\cite{{{SOFTWARE_KEY}}}.",
        _model(run.model),
        _data(run),
        *(_task(name, described, keys) for name, described in run.tasks.items()),
        _decoding(run),
        _compared(run, keys),
        _statistics(run),
    ]
    if run.protocol is not None:
        changes = "; ".join(run.protocol["changes"])
        what = f"with these changes: {changes}" if changes else "as published"
        source = f" ({run.protocol['source']})" if run.protocol.get("source") else ""
        sentences.append(latex_text(f"The protocol was {run.protocol['name']}{source}, {what}."))
    sentences += [latex_text(f"{text[0].upper()}{text[1:]}.") for text in run.shortfalls()]
    return " ".join(sentence for sentence in sentences if sentence)


def _model(model: Mapping[str, Any]) -> str:
    facts = [
        str(model.get("class") or ""),
        f"{model['parameters']:,} parameters" if model.get("parameters") else "",
        str(model.get("dtype") or ""),
        f"revision {model['revision']}" if model.get("revision") else "",
        f"weights {model['weights']}" if model.get("weights") else "",
        f"run on {model['device']}" if model.get("device") else "",
        "weights packed for oneDNN" if model.get("packed_weights") else "",
        "answered by a server" if "endpoint" in model else "",
    ]
    return latex_text(f"The model was {model['name']} ({', '.join(fact for fact in facts if fact)}).")


def _data(run: RunResults) -> str:
    data = run.data
    sources = [data.get("selection"), f"sha256 of their ids {data['image_ids_sha256']}"]
    skipped = max((len(method.skipped_images) for method in run.methods), default=0)
    sources += [f"{skipped} of them could not be read by some method"] if skipped else []
    facts = "; ".join(str(item) for item in sources if item)
    return latex_text(f"The data were {data['images']} images of {data['name']} ({facts}).")


def _task(name: str, described: Mapping[str, Any], keys: Mapping[str, str]) -> str:
    if name not in task_names():
        return latex_text(f"Task {name}: {_settings(described)}.")
    cite = _cite(papers_of_task(name), keys)
    return f"{latex_text(f'Task {name}: {task_class(name).caption(described)} ({_settings(described)})')}{cite}."


def _decoding(run: RunResults) -> str:
    used = run.decoding
    more = [f"batches of {used['batch_size']}" if "batch_size" in used else "", f"seed {used.get('seed', 'not said')}"]
    own = _settings(used.get("checkpoint", {}))
    kept = f" The checkpoint's own generation settings stayed: {own}." if own else ""
    template = _settings(run.template)
    text = f"Decoding was {decoding_text(used)}, {', '.join(item for item in more if item)}.{kept}"
    return latex_text(f"{text} The prompt's template: {template}." if template else text)


def _compared(run: RunResults, keys: Mapping[str, str]) -> str:
    return "Compared were " + "; ".join(_method(method, run.baseline, keys) for method in run.methods) + "."


def _method(method: MethodResult, baseline: str, keys: Mapping[str, str]) -> str:
    parts = []
    for item in method.methods:
        name, options = str(item["method"]), item.get("options", {})
        if name == "none":
            parts.append("the model as it is")
            continue
        title = described_method(name)["title"] if name in method_names() else name
        settings = f" with {latex_text(_settings(options))}" if options else ""
        parts.append(f"{latex_text(title or name)}{_cite(papers_of_method(name), keys)}{settings}")
    where = ", the baseline" if method.label == baseline else ""
    return f"{latex_text(method.label)}{where} ({' and '.join(parts)})"


def _statistics(run: RunResults) -> str:
    used = run.statistics
    return latex_text(
        f"Intervals are at the level {used['level']}: {used['interval']}, {used['resamples']} resamples, "
        f"seed {used.get('seed', 'not said')}."
    )


def _cite(papers: Sequence[Paper], keys: Mapping[str, str]) -> str:
    found = [keys[paper.eprint] for paper in papers if paper.eprint in keys]
    return f"~\\cite{{{','.join(found)}}}" if found else ""


def _settings(values: Mapping[str, Any]) -> str:
    """Settings in words, without those that are not set."""
    return ", ".join(
        f"{name} = {'nothing' if value == '' else value}" for name, value in values.items() if value is not None
    )
