"""`vlm-guard protocols`: how published numbers were made, for `vlm-guard eval --protocol`."""

from typing import Annotated

import typer


def command(
    name: Annotated[str | None, typer.Argument(help="Show one protocol with its settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """List the protocols of vlm-guard eval --protocol, or one with its settings and its source."""
    import json
    from dataclasses import asdict

    from vlm_guard.eval.run.protocols import PROTOCOLS, find_protocol

    chosen = PROTOCOLS if name is None else (find_protocol(name),)
    if as_json:
        described = [asdict(protocol) for protocol in chosen]
        print(json.dumps(described if name is None else described[0], indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if name is None:
        table = Table(box=None, header_style="bold")
        table.add_column("protocol", no_wrap=True)
        table.add_column("what it is")
        for protocol in chosen:
            table.add_row(protocol.name, Text(protocol.what))
        console.print(table)
        console.print("\nOne protocol with its settings: vlm-guard protocols NAME", style="dim")
        return
    protocol = chosen[0]
    console.print(Text.assemble((protocol.name, "bold"), f"  {protocol.what}\n"))
    console.print(Text(f"source: {protocol.source}"))
    console.print(Text(f"give as well: --data coco:FOLDER, {protocol.needs[1]}"))
    if protocol.remarks:
        console.print(Text(f"to know: {protocol.remarks}"))
    console.print(Text(f"\n{json.dumps(protocol.settings, indent=2)}"))
