"""`vlm-guard serve`: vLLM's OpenAI server with guards, chosen by each request."""

from typing import Annotated

import typer

# What this command does not know goes on to vLLM.
context_settings = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="builtin, smol, a folder or a Hugging Face id.")],
    methods: Annotated[
        str, typer.Option(help="What requests may name, between semicolons: 'pai;m3id;strict=pai:gain=0.5'.")
    ] = "",
    default: Annotated[
        str | None,
        typer.Option(help="The method of requests that name none; without it these are answered plainly."),
    ] = None,
    grounding: Annotated[
        str | None,
        typer.Option(
            help="Score what answers mention, at POST /v1/vlm_guard/mentions: lens,self_check or one of them."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hugging Face id.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = False,
) -> None:
    """Start vLLM's OpenAI server with guards; options that are not listed here are vLLM's (--port 8000, ...).

    A request names its method by "vllm_xargs": {"vlm_guard": "strict"}. Needs the extra 'vllm'; see docs/serving.md.
    """
    import os
    import sys

    from vlm_guard.serving.vllm.declaration import Declaration
    from vlm_guard.serving.vllm.start.engine import server_flags
    from vlm_guard.serving.vllm.versions import installed_version, refuse_untested

    declared = Declaration.read(methods, default, grounding)
    refuse_untested(installed_version())
    from vlm_guard.builtin_model import is_shipped, shipped_folder
    from vlm_guard.families.processor_needs import refuse_missing_folder
    from vlm_guard.serving.vllm.served_guards import ServedGuards, meta_model
    from vlm_guard.serving.vllm.start.chat_template import served_chat_template

    source = str(shipped_folder(model)) if is_shipped(model) else model
    refuse_missing_folder(source)
    made, processor = meta_model(source, revision, trust_remote_code)
    # What a method lacks of this model is said here in one line, not in the middle of vLLM's start.
    ServedGuards(declared, made, processor)
    flags = ["--model", source, *server_flags(declared)]
    if is_shipped(model) and "--served-model-name" not in context.args:
        flags += ["--served-model-name", model]
    template = served_chat_template(processor)
    if template is not None and "--chat-template" not in context.args:
        # vLLM takes the text itself, too; it knows it by its braces.
        flags += ["--chat-template", template]
    if revision is not None:
        flags += ["--revision", revision]
    if trust_remote_code:
        flags.append("--trust-remote-code")
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags, *context.args]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)
