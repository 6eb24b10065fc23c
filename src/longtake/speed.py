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

COMPILATIONS = ("auto", "off", "blocks")
"""Whether the transformer's blocks are compiled once the memory is full, see ``longtake.compiled``: where that is known
to be faster, nowhere, or here, or it is refused."""

DECODINGS = ("exact", "fast", "tiny")
"""How latents become frames, see ``longtake.decode``: one by one, bit for bit as diffusers decodes a whole video;
several at once and with the layout that suits the device, which is the same up to rounding; or by another, much smaller
decoder (``longtake.tiny``), for previews."""

TYPED_DECODINGS = ("exact", "fast", "tiny:FILE")
"""`DECODINGS` as the command line takes them."""

_CHOICES = {
    "forward path": FORWARD_PATHS,
    "attention": ATTENTIONS,
    "collapse": COLLAPSE,
    "compilation": COMPILATIONS,
    "decoding": DECODINGS,
}


def check(setting: str, value: str) -> None:
    """Refuses a value that does not exist.

    Args:
        setting: "forward path", "attention", "collapse", "compilation" or "decoding".

    Raises:
        ValueError: in one sentence.
    """
    if value not in _CHOICES[setting]:
        raise ValueError(f"The {setting} is one of {', '.join(_CHOICES[setting])}, not {value!r}.")


def tiny_file(decoding: str | None) -> str | None:
    """The file of weights in ``tiny:FILE``, as the command line takes it; None for other ways of decoding."""
    name, _, file = (decoding or "").partition(":")
    return file if name == "tiny" and file else None
