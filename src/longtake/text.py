"""Prompts to text embeddings, as the Wan pipelines do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

MAX_TOKENS = 512  # Wan2.1's text length


def text_length(tokenizer: Any) -> int:
    """Tokens per prompt, padding included: the tokenizer's own limit, 512 at most."""
    return int(min(tokenizer.model_max_length, MAX_TOKENS))


def zeros_at_end(text: torch.Tensor) -> int:
    """How many tokens at the end of ``[batch, tokens, dim]`` are zero for every text, as padding is."""
    tokens = text.ne(0).any(-1).any(0).nonzero()
    return text.shape[1] - (int(tokens[-1]) + 1 if len(tokens) else 0)


def encode_text(
    tokenizer: Any, text_encoder: Any, prompts: Sequence[str], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Text embeddings ``[prompts, tokens, dim]``; what stands for padding is zero, as in Wan2.1's training."""
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=text_length(tokenizer),
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask = tokens["attention_mask"].to(device)
    states = text_encoder(input_ids=tokens["input_ids"].to(device), attention_mask=mask).last_hidden_state
    embedded: torch.Tensor = states * mask[..., None].to(states.dtype)
    return embedded
