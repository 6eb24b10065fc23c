"""What can be chosen about speed, by name. Loading this module does not load torch."""

from __future__ import annotations

FORWARD_PATHS = ("auto", "fast", "plain")
"""How the transformer is run, see ``longtake.forward``: fast where that is possible; fast, or refused; as diffusers
does."""

ATTENTIONS = ("auto", "native", "products", "cudnn", "flash", "flash-attn-2", "flash-attn-3", "sage")
"""What computes attention, see ``longtake.kernels``: the best that there is; PyTorch's own choice; two products and a
softmax (CPU); or, on NVIDIA GPUs, cuDNN's or FlashAttention's kernel as PyTorch has them, and those of the packages
flash-attn (2 or 3) and sageattention."""

COLLAPSE = ("auto", "on", "off")
"""Whether frames of one key and one value are attended to in closed form, and padding of the text as one token: where
that is known to be faster, wherever possible, or nowhere."""

DECODINGS = ("exact", "fast")
"""How latents become frames, see ``longtake.decode``: one by one, bit for bit as diffusers decodes a whole video; or
several at once and with the layout that suits the device, which is the same up to rounding."""


def check_forward_path(path: str) -> None:
    """Refuses a path that does not exist.

    Raises:
        ValueError: in one sentence.
    """
    if path not in FORWARD_PATHS:
        raise ValueError(f"Forwards are run one of these ways: {', '.join(FORWARD_PATHS)}, not {path!r}.")


def check_attention(name: str) -> None:
    """Refuses a kernel that does not exist.

    Raises:
        ValueError: in one sentence.
    """
    if name not in ATTENTIONS:
        raise ValueError(f"Attention is computed by one of {', '.join(ATTENTIONS)}, not by {name!r}.")


def check_collapse(collapse: str) -> None:
    """Refuses an answer that is none.

    Raises:
        ValueError: in one sentence.
    """
    if collapse not in COLLAPSE:
        raise ValueError(f"Collapsing is one of {', '.join(COLLAPSE)}, not {collapse!r}.")


def check_decoding(decoding: str) -> None:
    """Refuses a way of decoding that does not exist.

    Raises:
        ValueError: in one sentence.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"Latents are decoded one of these ways: {', '.join(DECODINGS)}, not {decoding!r}.")
