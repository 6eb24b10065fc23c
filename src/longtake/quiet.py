"""Keeps other libraries off the screen."""

from __future__ import annotations


def quieten_libraries() -> None:
    """No progress bars and notes of diffusers and transformers, which this imports."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
