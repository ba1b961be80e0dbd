"""A chat server answers, many requests at once: vLLM with or without guards, or any other that speaks OpenAI's way."""

import os
import queue
import threading
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm_guard.environment import processor_name
from vlm_guard.eval.run.engines.base import Answered, Engine, Job, JobAnswers, SampleAnswer, unreadable_reason
from vlm_guard.eval.run.engines.chat_server import KEY_VARIABLE, ChatServer, Refused, Stopped
from vlm_guard.eval.run.engines.picture_urls import PictureUrls
from vlm_guard.eval.run.engines.served_mentions import (
    MENTIONS,
    mentions_body,
    read_mentions,
    refuse_unserved,
    scores_mentions,
)
from vlm_guard.eval.run.environment import scoring_versions
from vlm_guard.eval.run.received import first_problem
from vlm_guard.eval.run.settings import MethodSpec, RunSettings, method_directories
from vlm_guard.untrusted.printed_text import one_line, shown

PLAIN = "none"
_NOT_KNOWN = "not known"
_CHAT, _MODELS, _OFFERS = "/chat/completions", "/models", "/vlm_guard"
_SHOWN_MODELS = 10


class _OfferedMethod(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    method: str
    options: dict[str, Any]


class _Offers(BaseModel):
    """What a server with our guards says of itself (`vlm_guard.serving.vllm.declaration.Declaration.describe`)."""

    model_config = ConfigDict(strict=True)

    offers: dict[str, list[_OfferedMethod]]
    default: str
    grounding: list[str] = []
    versions: dict[str, str]


class Endpoint(Engine):
    """Asks the server what it has, so that mistakes are said before anything is asked.

    Args:
        settings: of the run; `check_settings` has seen them.
        address: of the server, from `base_address`.

    Raises:
        ValueError: the server does not have the model or a method.
        OSError: there is no server.
    """

    batch_size = 1
    timed = "request"

    def __init__(self, settings: RunSettings, address: str) -> None:
        self._settings = settings
        self._server = ChatServer(address, _key(), settings.request_timeout)
        self._model = _served_model(self._server, settings.endpoint_model)
        offers = _offers(self._server)
        _refuse_unscored(self._server.base, settings, offers)
        texts = settings.methods if "methods" in settings.model_fields_set else [PLAIN]
        self.specs = [
            MethodSpec(label=text, directory=directory, methods=())
            for text, directory in zip(texts, method_directories(texts))
        ]
        self._described = [_described(self._server.base, text, offers) for text in texts]
        self._server_versions = {} if offers is None else offers.versions
        # A server whose requests are guarded unless they say otherwise must be told that plain is meant.
        guarded = offers is not None and offers.default != PLAIN
        self._named = [None if text == PLAIN and not guarded else text for text in texts]
        self._pictures = PictureUrls()

    def fingerprint(self, method: int) -> dict[str, Any]:
        """What decides the answers of a method besides data and tasks, as far as the server tells it.

        The address is not among it: a server that comes up elsewhere may go on with a run. Sessions name it.
        """
        decoding = self._settings.decoding.model_dump()
        return {
            "template": {"source": "the server's"},
            "decoding": {**decoding, "seed": self._settings.seed, "batch_size": self.batch_size},
            "model": {name: value for name, value in self.model().items() if name != "endpoint"},
            "methods": self._described[method],
            "attention_backend": None,
            "profile": None,
            "versions": scoring_versions(),
        }

    def model(self) -> dict[str, Any]:
        """The model's name as the server says it. Nothing else is known of the model, and nothing else is claimed."""
        return {
            "name": self._model,
            "dtype": _NOT_KNOWN,
            "server_versions": self._server_versions,
            "endpoint": self._server.base,
        }

    def surroundings(self) -> dict[str, Any]:
        """The server's address, and this machine, which asks and scores."""
        return {
            "endpoint": self._server.base,
            "concurrency": self._settings.concurrency,
            "versions": scoring_versions(),
            "hardware": {"server": _NOT_KNOWN, "client": processor_name()},
        }

    def answers(self, jobs: Sequence[Job]) -> Answered:
        """Answer jobs, `concurrency` at a time; each comes out as soon as its answer is there.

        The threads are daemons: whoever ends the run does not wait for answers that nobody will write down.
        """
        waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Job, JobAnswers] | BaseException] = queue.SimpleQueue()
        workers = min(self._settings.concurrency, len(jobs))
        for job in (*jobs, *[None] * workers):
            waiting.put(job)
        for _ in range(workers):
            threading.Thread(target=self._work, args=(waiting, done), daemon=True).start()
        try:
            for _ in jobs:
                came = done.get()
                if isinstance(came, BaseException):
                    raise came
                yield came
        finally:
            self._server.stop()

    def _work(self, waiting: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
        while (job := waiting.get()) is not None:
            try:
                done.put((job, self._answer(job)))
            except Stopped:
                return
            except BaseException as error:  # whatever it is, whoever waits for answers must hear of it
                done.put(error)
                return

    def _answer(self, job: Job) -> JobAnswers:
        """Ask for the one answer of a job."""
        (sample,) = job.batch.samples
        try:
            url = self._pictures.url(job.batch.task, sample)
        except OSError as error:
            file = job.batch.task.data.images[sample.image_id]
            return JobAnswers(answers=(), broken={sample.key: unreadable_reason(error, file)})
        body = self._body(job, sample.prompt, url)
        asked = "" if self._named[job.method] is None else f", method {self._named[job.method]}"
        about = (
            f"the request for {shown(sample.key)} (model {self._model}{asked}, max_tokens {body['max_tokens']}, "
            f"a picture of {len(url) * 3 // 4096} KiB)"
        )
        answer, seconds = self._server.post(_CHAT, body, one_line(about))
        text, ended, tokens = _read(answer, self._server.base, sample.key)
        if ended not in ("stop", "length"):
            return JobAnswers(answers=(), broken={sample.key: f"the server gave no whole answer ({shown(ended)})"})
        grounding = job.batch.task.grounding()
        measured: dict[str, Any] = {}
        if grounding is not None:
            request = mentions_body(body, text.strip(), answer["choices"][0].get("token_ids"), grounding)
            said, _ = self._server.post(MENTIONS, request, one_line(f"the scores of the answer to {shown(sample.key)}"))
            measured = job.batch.task.scored(read_mentions(said, self._server.base, sample.key))
        found = SampleAnswer(
            sample=sample,
            text=text.strip(),
            tokens=tokens,
            finished=ended == "stop",
            seconds=seconds,
            memory_bytes=0,
            memory_kind=_NOT_KNOWN,
            measured=measured,
        )
        return JobAnswers(answers=(found,), broken={})

    def _body(self, job: Job, prompt: str, url: str) -> dict[str, Any]:
        decoding = self._settings.decoding
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": job.batch.task.max_new_tokens,
            "temperature": 0,
        }
        if decoding.do_sample:
            seed = job.batch.seed(self._settings.seed)
            body |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": seed}
        if job.batch.task.grounding() is not None:
            body["return_token_ids"] = True
        if self._named[job.method] is not None:
            body["vllm_xargs"] = {"vlm_guard": self._named[job.method]}
        return body


def _key() -> str | None:
    """The key for the server; None where none is set.

    Raises:
        ValueError: it cannot be a key; what it is is not said.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"the environment variable {KEY_VARIABLE} holds blanks or signs that no key has; set it anew")
    return key or None


def _served_model(server: ChatServer, wanted: str | None) -> str:
    """The name of the model to ask.

    Raises:
        ValueError: the server has another one, or several and none was chosen.
    """
    try:
        listed = server.get(_MODELS)
    except Refused as error:
        if error.status != 404 or wanted is None:
            raise
        return wanted  # a server that lists nothing; it will say itself if it does not know the model
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in entries
    ):
        raise ValueError(f"{server.base}{_MODELS} is no list of models: {shown(listed)}; check --endpoint")
    names = [entry["id"] for entry in entries]
    more = f" and {len(names) - _SHOWN_MODELS} more" if len(names) > _SHOWN_MODELS else ""
    have = one_line(", ".join(names[:_SHOWN_MODELS]) + more) or "no model"
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{server.base} has no model {shown(wanted)}; it has {have}")
        return wanted
    if len(names) != 1:
        raise ValueError(f"{server.base} has {have}; say which with --endpoint-model")
    return names[0]


def _offers(server: ChatServer) -> _Offers | None:
    """What a server with our guards says of itself; None for any other server.

    Raises:
        ValueError: it says it in a form that cannot be read.
    """
    try:
        found = server.get(_OFFERS)
    except Refused:
        return None  # its models were listed a moment ago, so the server is there and does not know this address
    try:
        return _Offers.model_validate(found)
    except ValidationError as error:
        raise ValueError(
            f"{server.base}{_OFFERS} says what cannot be read ({first_problem(error)}); is it of another version?"
        ) from None


def _refuse_unscored(base: str, settings: RunSettings, offers: _Offers | None) -> None:
    """Refuse tasks for whose answers the server must give scores, where it gives none, or not those.

    Raises:
        ValueError: there is one.
    """
    scored = list(filter(scores_mentions, settings.tasks))
    if scored and (offers is None or not offers.grounding):
        raise ValueError(
            f"the task {scored[0]} needs scores of what answers mention, and the server at {base} gives none; start it "
            "with 'vlm-guard serve MODEL --grounding lens,self_check' (docs/serving.md), or run it without --endpoint"
        )
    if scored and offers is not None:
        refuse_unserved(settings, offers.grounding, "--endpoint")


def _described(base: str, text: str, offers: _Offers | None) -> list[dict[str, Any]]:
    """A method with all its settings, as the server has declared it.

    Raises:
        ValueError: the server does not offer it; it would answer plainly, or refuse.
    """
    if text == PLAIN:
        return []
    if offers is None:
        raise ValueError(
            f"--method {shown(text)}: the server at {base} declares no methods (it has no {_OFFERS}), and would answer "
            f"plainly; ask it for --method {PLAIN} alone, or start it with 'vlm-guard serve' (docs/serving.md)"
        )
    if text not in offers.offers:
        names = one_line(", ".join([PLAIN, *offers.offers]))
        raise ValueError(f"--method {shown(text)} is not offered by the server at {base}; offered: {names}")
    return [method.model_dump() for method in offers.offers[text]]


def _read(answer: Any, base: str, key: str) -> tuple[str, str, int]:
    """Text, reason for its end and number of tokens of an answer.

    Raises:
        ValueError: the answer is none of the chat interface.
    """
    try:
        choice = answer["choices"][0]
        text, ended, tokens = (
            choice["message"]["content"],
            choice["finish_reason"],
            answer["usage"]["completion_tokens"],
        )
    except (KeyError, IndexError, TypeError):
        text = ended = tokens = None
    if (
        not isinstance(text, str | None)
        or not isinstance(ended, str)
        or not isinstance(tokens, int)
        or isinstance(tokens, bool)
        or tokens < 0
    ):
        raise ValueError(
            f"{base} answered {shown(key)} with something that is no chat completion with its usage: {shown(answer)}"
        )
    return text or "", ended, tokens
