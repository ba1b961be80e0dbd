"""`vlm-guard demo`: the page where one model answers twice, plain and guarded."""

from typing import Annotated

import typer

from vlm_guard.cli._weights import PackWeights


def command(
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 7860 on by default.")] = None,
    model: Annotated[str, typer.Option(help="builtin, smol, a Hugging Face id, or a checkpoint's folder.")] = "builtin",
    data: Annotated[
        str | None, typer.Option(help="Pictures: scenes:SPLIT, coco:FOLDER, or a folder in MSCOCO's format.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    pack_weights: PackWeights = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name that browsers may call the page by, behind a proxy; may be repeated."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve the demo on this machine (127.0.0.1 only). Needs the extra 'demo'."""
    from importlib.util import find_spec

    if find_spec("gradio") is None or find_spec("matplotlib") is None:
        from vlm_guard.environment import install_line

        raise ImportError(f"the demo needs Gradio and matplotlib: {install_line('demo')}")
    from vlm_guard.builtin_model import is_shipped
    from vlm_guard.demo.ports import free_port

    port = free_port(port)  # before the model is loaded, which may take minutes
    print(f"loading {model} ...", flush=True)
    import torch

    from vlm_guard.demo.app import build_app, launch_options
    from vlm_guard.eval.run.models import load_model

    options = launch_options(port, allow_host or ())
    if model == "builtin" and device in ("auto", "cpu"):
        # Its matrices are so small that two threads wait for each other longer than they compute.
        torch.set_num_threads(1)
    loaded = load_model(model, device=device, dtype=dtype, pack_weights=pack_weights)
    opening = is_shipped(model)
    if opening:
        print("looking for an example where the guard helps ...", flush=True)
    app = build_app(loaded.model, loaded.processor, data, opening=opening)
    free_port(port)  # somebody else may have taken it meanwhile
    # Gradio's own lines advertise a public link, which this page never has.
    app.launch(**options, inbrowser=open_browser, quiet=True, prevent_thread_lock=True)
    print(f"the page is at http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    app.block_thread()
