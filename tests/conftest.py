"""A pipeline of random weights, small enough that a chunk takes milliseconds, and ways to run the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.warm import Warm

if TYPE_CHECKING:
    from longtake import LongTakePipeline

pytest.register_assert_rewrite("tests.helpers_browser")  # what a page complained about is told
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
warm = Warm(ENVIRONMENT)


def build_tiny(seed: int = 0) -> LongTakePipeline:
    """32x32 pixels, one layer, random weights."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from longtake import LongTakePipeline
    from longtake.pocket.model import TEXT_CONFIG, VAE_CONFIG, build_tokenizer

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text = {**TEXT_CONFIG, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2}
    sizes = {"base_dim": 4, "decoder_base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1]}
    vae = AutoencoderKLWan(**{**VAE_CONFIG, **sizes, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4})
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            if parameter.ndim > 1:  # louder than it is born, so that there is something to see
                parameter.mul_(3)
    pipe = LongTakePipeline(
        tokenizer,
        UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **text)),
        vae.eval(),
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer.eval(),
        default_size=(32, 32),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny() -> Iterator[LongTakePipeline]:
    """A tiny pipeline; takes do not change it, so all tests share one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build_tiny()
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tiny: LongTakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as ``save_pretrained`` leaves it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_pretrained(folder)
    return folder


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def cli_command(*arguments: str | Path) -> list[str]:
    """The command line as a user runs it."""
    return [sys.executable, "-m", "longtake.cli", *map(str, arguments)]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs ``longtake ARGUMENTS`` in an empty folder, in a process of its own; in a fresh one if there are options."""

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        if not options:
            return warm.run("longtake.cli", *arguments, cwd=tmp_path)
        settings = {"cwd": tmp_path, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 600}
        return subprocess.run(cli_command(*arguments), **{**settings, **options})

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can make a small file system")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this system lets nobody make a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
