"""``python -m longtake.training`` and ``torchrun -m longtake.training``: the same as ``longtake train``."""

from __future__ import annotations

import os

import typer

from longtake.cli_progress import open_streams, settle_streams
from longtake.process import wait_passively
from longtake.training.command import train


def main() -> None:
    """Entry point."""
    wait_passively()
    open_streams()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(train)
    try:
        app(prog_name="python -m longtake.training")
    except SystemExit as end:
        settle_streams()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and isinstance(end.code, int):
            # All is written, and the group is left. Threads of gloo may still hold tensors: one that lets go of them
            # while the interpreter ends takes the process with it (SIGABRT), and torchrun the others.
            os._exit(end.code)
        raise
    finally:
        settle_streams()


if __name__ == "__main__":
    main()
