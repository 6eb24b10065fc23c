"""What can be chosen about speed, by name. Loading this module does not load torch."""

from __future__ import annotations

FORWARD_PATHS = ("auto", "fast", "plain")
"""How the transformer is run, see ``longtake.forward``: fast where that is possible; fast, or refused; as diffusers
does."""


def check_forward_path(path: str) -> None:
    """Refuses a path that does not exist.

    Raises:
        ValueError: in one sentence.
    """
    if path not in FORWARD_PATHS:
        raise ValueError(f"Forwards are run one of these ways: {', '.join(FORWARD_PATHS)}, not {path!r}.")
