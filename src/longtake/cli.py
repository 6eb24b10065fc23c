"""The command line. Parses, calls the library and draws progress; nothing else lives here.

Heavy imports are inside the commands: ``longtake --help`` and every refusal of bad input answer at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from longtake import __version__
from longtake import cli_options as typed
from longtake.cli_compare import compare
from longtake.cli_eval import evaluate
from longtake.cli_progress import open_streams, say, settle_streams, tell
from longtake.cli_serve import serve
from longtake.process import wait_passively
from longtake.training.command import train

app = typer.Typer(
    name="longtake",
    help="Endless video from a text prompt, at a cost per second that does not grow.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted:
        tell(f"longtake {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help='What to show, or a script: "a red ball rolls over a meadow [10s] | a blue ball bounces on snow '
            '[20s]"; a part may begin with how its prompt takes over, like [cut]. Not needed with --resume.',
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        str | None, typer.Option(help="Length of the video: 30, 1m30s, 2h. Default: the script's, else 30.")
    ] = None,
    model: typed.Model = None,
    components: typed.Components = None,
    lora: typed.Lora = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            help="What is remembered, see `longtake memories`; e.g. memrope:sink=3,recent=4. Default: the model's.",
        ),
    ] = None,
    memory_weights: typed.MemoryWeights = None,
    seed: Annotated[int | None, typer.Option(help="Of all noise; the same seed, the same video. Default: 0.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The video, an MP4 file; its snapshot lies beside it. With --prompts or --config, a folder. "
            "Default: take.mp4, or the folder takes.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue what is there, or make it longer; start afresh where nothing is. "
            "Settings that are not given are those the video was begun with.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over where a video is.")] = False,
    image: Annotated[
        Path | None,
        typer.Option(
            help="Begin with this picture. Models trained on text alone, as all of `longtake models` are, "
            "take it up as if they had made it; far from their kind of picture, it may soon be lost."
        ),
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEO",
            help="Go on where this video ends: all of it is remembered first. The new file has only what comes after.",
        ),
    ] = None,
    height: typed.Pixels = None,
    width: typed.Pixels = None,
    dtype: typed.Dtype = None,
    device: typed.Device = None,
    devices: typed.Devices = None,
    offload: typed.Offload = None,
    quantize: typed.Quantize = None,
    attention: typed.Attention = None,
    compilation: typed.Compile = None,
    decoding: typed.Decoding = None,
    on_change: typed.OnChange = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="One video per line of this file, into the folder --out; finished ones stay."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A YAML configuration of the published MemRoPE code.")
    ] = None,
    start: Annotated[int | None, typer.Option(help="First line of the prompts, from 0.", min=0)] = None,
    end: Annotated[int | None, typer.Option(help="Line to stop before.", min=0)] = None,
    snapshot_every: typed.SnapshotEvery = None,
    threads: typed.Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Neither plan nor progress.")] = False,
) -> None:
    """Make a video from a prompt.

    Plan and progress go to stderr, the finished file's path to stdout. Ctrl-C ends a take cleanly, and it can be
    continued later as if it had never stopped.
    """
    from longtake.cli_prepare import DEFAULT_OUT, Request

    request = Request(
        prompt=prompt,
        out=out or DEFAULT_OUT,
        seconds=seconds,
        model=model,
        components=components,
        loras=tuple(lora or ()),
        memory=memory,
        memory_weights=memory_weights,
        seed=seed,
        image=image,
        continue_from=continue_from,
        height=height,
        width=width,
        dtype=dtype,
        device=device,
        devices=devices,
        offload=offload,
        quantize=quantize,
        attention=attention,
        compilation=compilation,
        decoding=decoding,
        on_change=on_change,
        every=snapshot_every,
        threads=threads,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
    )
    if prompts is not None or config is not None:
        from longtake.cli_batch import generate_all

        raise typer.Exit(generate_all(request, config, prompts, start, end, out))
    if start is not None or end is not None:
        raise typer.Exit(say("--start and --end choose lines of --prompts or --config.", 2))
    from longtake.cli_generate import generate as run

    raise typer.Exit(run(request))


app.command()(serve)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that are known by name."""
    from longtake.cli_models import models_command

    raise typer.Exit(models_command(as_json))


@app.command()
def download(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of `longtake models`.")],
) -> None:
    """Download models, or what is missing of them; broken downloads go on where they broke off.

    Models also download themselves when they are first used.
    """
    from longtake.cli_models import download_command

    raise typer.Exit(download_command(names))


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A published checkpoint (.pt, .safetensors), an original Wan folder, or a name."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The diffusers folder to make.")],
    key: Annotated[
        str | None, typer.Option(help="Which weights of the file: generator_ema, generator, ... Default: the best.")
    ] = None,
    components: Annotated[
        Path | None,
        typer.Option(help="Autoencoder and text encoder to put in as well: a diffusers or an original Wan folder."),
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="PATH[:SCALE]", help="LoRA weights to fuse; may be given several times.")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="keep|float32|bfloat16", help="Of weights. Default: keep.")] = "keep",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
) -> None:
    """Convert a published checkpoint into a diffusers folder. Strict: every weight is accounted for."""
    from longtake.cli_convert import convert_command

    raise typer.Exit(convert_command(source, out, key, components, lora or [], dtype, overwrite))


app.command()(train)


@app.command()
def memories() -> None:
    """List the memories, their papers and their settings."""
    from dataclasses import fields

    from longtake.memory import MEMORIES

    for name, info in MEMORIES.items():
        tell(f"{name}: {info.description} ({info.paper})")
        policy = info.create()
        settings = []
        for field in fields(policy):  # type: ignore[arg-type]
            value = getattr(policy, field.name)
            others = [c for c in policy.choices.get(field.name, ()) if c != value]
            if isinstance(value, bool):
                value, others = str(value).lower(), [str(not value).lower()]
            settings.append(f"{field.name}={value}" + (f" (or {', '.join(others)})" if others else ""))
        tell(f"    {', '.join(settings)}")
    tell("Change settings like this: --memory memrope:recent=7,pooling=position")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what Longtake runs on, and test it: two chunks with every memory, and a snapshot."""
    from longtake.doctor import examine

    report = examine()
    if as_json:
        tell(json.dumps(report.to_dict(), indent=2))
    else:
        tell("\n".join(report.lines()))
    raise typer.Exit(1 if report.problems else 0)


@app.command()
def parity(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings of published pipelines.")],
    tolerance: Annotated[float, typer.Option(help="Largest absolute difference that passes.")] = 1e-4,
    path: Annotated[
        str,
        typer.Option(
            metavar="auto|fast|plain",
            help="How the transformer is run: fast where possible, fast or not at all, or by diffusers' own forward.",
        ),
    ] = "auto",
) -> None:
    """Replay recorded runs of published pipelines and compare.

    Exit code: 0 if all pass, 1 if a difference is too large, 2 if a file is no recording that can be replayed.
    """
    from longtake.cli_parity import compare

    raise typer.Exit(compare(files, tolerance, path))


app.command("eval")(evaluate)
app.command()(compare)


@app.command()
def sheet(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.")],
    out: Annotated[Path | None, typer.Option(help="A .png or .jpg file. Default: beside the video.")] = None,
    every: Annotated[str | None, typer.Option(help="Seconds between pictures. Default: 24 in all.")] = None,
    columns: Annotated[int, typer.Option(help="Pictures per row.", min=1)] = 6,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture if it exists.")] = False,
) -> None:
    """Make a contact sheet of a video: its pictures in a grid, with their times."""
    from longtake.prompts import parse_duration

    target = out or video.with_suffix(".png")
    try:
        step = None if every is None else parse_duration(every)
        if target.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"--out must end in .png or .jpg, not be {str(target)!r}.")
        if not target.parent.is_dir():
            raise ValueError(f"There is no folder {target.parent}: --out must lie in one that exists.")
        if not video.is_file():
            raise ValueError(f"There is no video {video}.")
        if target.exists():
            if not target.is_file() or target.samefile(video):
                raise ValueError(f"{target} is no place for the sheet: choose another one with --out.")
            if not overwrite:
                raise ValueError(f"{target} exists: --overwrite replaces it, --out takes another name.")
        from longtake.sheet import contact_sheet
        from longtake.video import probe, read_frames

        info = probe(video)
        gap = max(1, round((step or info.seconds / 24) * info.fps))
        if info.frames // gap > 2000:
            raise ValueError(f"That would be {info.frames // gap} pictures; ask for 2000 or fewer with --every.")
        frames = [frame for index, frame in enumerate(read_frames(video)) if index % gap == 0]
        labels = [f"{index * gap / info.fps:.1f} s" for index in range(len(frames))]
        contact_sheet(frames, columns, labels).save(target)
    except (ValueError, OSError) as error:
        raise typer.Exit(say(str(error), 2)) from None
    tell(str(target.absolute()))


def main() -> None:
    """Entry point of the ``longtake`` command."""
    wait_passively()
    open_streams()
    try:
        app()
    except OSError as error:  # the commands take care of theirs: this is stdout, which did not take a page of help
        sys.exit(say(f"{error.strerror or error}.", 1))
    finally:
        settle_streams()


if __name__ == "__main__":
    main()
