"""The pocket model's parts, in their configurations: a Wan small enough to train and run on a laptop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longtake.pocket.first.words import vocabulary

TEXT_TOKENS = 24
CHUNK = 3
TIMESTEPS = (1000.0, 750.0, 500.0, 250.0)
SHIFT = 5.0

VAE_CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "decoder_base_dim": 24,
    "z_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}

TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 128,
    "freq_dim": 256,
    "ffn_dim": 1024,
    "num_layers": 6,
}

TEXT_CONFIG: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 1,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 32,
    "is_encoder_decoder": False,
    "use_cache": False,
}


def build_vae(**changes: Any) -> AutoencoderKLWan:
    """The autoencoder, untrained: 64x64 to latents of 16 channels, 8x8, one per four frames.

    Args:
        changes: of its configuration.
    """
    return AutoencoderKLWan(**{**VAE_CONFIG, **changes})


def build_transformer() -> WanTransformer3DModel:
    """The denoiser, untrained."""
    return WanTransformer3DModel(**TRANSFORMER_CONFIG)


def build_tokenizer(words: Sequence[str] | None = None, tokens: int = TEXT_TOKENS) -> PreTrainedTokenizerFast:
    """One token per word, ``</s>`` at the end.

    Args:
        words: that it knows; by default the vocabulary of the first pocket world.
        tokens: of a text, the end included.
    """
    vocab = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *(words or vocabulary())))}
    core = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocab["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=tokens,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_text_encoder(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> UMT5EncoderModel:
    """A one-layer UMT5 encoder for ``tokenizer``, untrained.

    Args:
        tokenizer: whose words it embeds.
        changes: of its configuration.
    """
    return UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **{**TEXT_CONFIG, **changes}))
