"""``longtake serve``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longtake import cli_options as typed


def serve(
    folder: Annotated[
        Path, typer.Option("--data", metavar="FOLDER", help="Where all takes are kept. Made if it is not there.")
    ] = Path("live"),
    host: Annotated[
        str, typer.Option(help="Address to listen to. Others than this computer's own need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen to; 0 for any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            help="What requests must show. Better in the variable LONGTAKE_TOKEN, where others cannot see it."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which people reach the server; may be given several times."),
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="Believe a proxy on this computer who its clients are.")
    ] = False,
    model: typed.Model = None,
    components: typed.Components = None,
    lora: typed.Lora = None,
    memory_weights: typed.MemoryWeights = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="auto|cpu|cuda|cuda:N,...|mps",
            help="Where to compute; on each of several, one take at a time, with a model of its own. Default: auto.",
        ),
    ] = None,
    dtype: typed.Dtype = None,
    offload: typed.Offload = None,
    quantize: typed.Quantize = None,
    attention: typed.Attention = None,
    decoding: typed.Decoding = None,
    threads: typed.Threads = None,
    ahead: Annotated[
        str, typer.Option(help="How far generation may be ahead of what is shown; prompts take effect that much later.")
    ] = "1s",
    idle_pause: Annotated[
        str, typer.Option(help='A take pauses when nobody has watched it for so long; "never" for not at all.')
    ] = "60s",
    turn: Annotated[
        str, typer.Option(help='How long a take may hold its device while others wait; "never" for no limit.')
    ] = "never",
    queue: Annotated[int, typer.Option(help="Takes that may wait, per device.")] = 8,
    max_takes: Annotated[int, typer.Option(help="Takes that are kept.")] = 200,
    max_length: Annotated[str, typer.Option(help="Length at which a take is finished.")] = "24h",
    min_free: Annotated[float, typer.Option(help="GB that must stay free on the disk.")] = 0.5,
    snapshot_every: Annotated[str, typer.Option(help="Of video, between snapshots.")] = "10s",
    picture: Annotated[str, typer.Option(metavar="jpeg|webp", help="How frames are sent.")] = "jpeg",
    quality: Annotated[int, typer.Option(help="Of pictures, 1 to 100.")] = 85,
) -> None:
    """Watch an endless video in the browser and steer it.

    Prints the address of the page when it is there. Every take is recorded; stopped or killed, the server offers to
    continue them when it is started again with the same folder.
    """
    from longtake.cli_serve_run import ServeRequest, duration, space, token_from
    from longtake.cli_serve_run import serve as run

    def request() -> ServeRequest:
        from longtake.cli_prepare import Request
        from longtake.live.settings import Settings

        settings = Settings(
            folder=folder,
            host=host,
            port=port,
            token=token_from(token),
            allow_hosts=tuple(allow_host or ()),
            behind_proxy=behind_proxy,
            ahead=duration("--ahead", ahead),
            idle_pause=duration("--idle-pause", idle_pause),
            turn=duration("--turn", turn),
            queue=queue,
            takes=max_takes,
            max_seconds=duration("--max-length", max_length),
            min_free=space("--min-free", min_free),
            snapshot_every=duration("--snapshot-every", snapshot_every),
            picture=picture,
            quality=quality,
        )
        model_options = Request(
            None,
            model=model,
            components=components,
            loras=tuple(lora or ()),
            memory_weights=memory_weights,
            device=device,
            dtype=dtype,
            offload=offload,
            quantize=quantize,
            attention=attention,
            decoding=decoding,
            threads=threads,
        )
        return ServeRequest(model_options, settings)

    raise typer.Exit(run(request))
