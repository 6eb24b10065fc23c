"""What a training configuration can say: one dataclass per section. Imports nothing heavy.

Defaults are those of the published recipes where there is one: Self-Forcing (arXiv 2506.08009), LongLive (2509.22622)
and Echo-Infinity for distillation, Wan (2503.20314) for flow matching.
"""

from __future__ import annotations

from dataclasses import dataclass

from longtake.training.settings import section, setting

MOST = 10**9  # steps, samples: more is a slip of the keyboard
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear-decay", "cosine-decay")


@dataclass(frozen=True)
class Optimization:
    """How one network is optimised."""

    optimizer: str = setting("adamw", "AdamW, or Muon for matrices with Adam for the rest.", choices=OPTIMIZERS)
    lr: float = setting(1e-4, "Learning rate; of Muon's matrices if that is the optimizer.", least=0, most=10)
    adam_lr: float | None = setting(None, "With Muon: the rate of Adam's parameters; null: lr.", least=0, most=10)
    betas: tuple[float, float] = setting((0.9, 0.99), "Adam's two rates of forgetting.", least=0, most=0.999999)
    eps: float = setting(1e-8, "Adam's epsilon.", above=0, most=1)
    weight_decay: float = setting(0.0, "Decoupled weight decay.", least=0, most=1)
    warmup_steps: int = setting(0, "Steps over which the learning rate rises from zero.", least=0, most=MOST)
    schedule: str = setting("constant", "What the rate does after that.", choices=SCHEDULES)
    decay_from: float = setting(0.3, "Share of the budget after which a decaying rate begins to fall.", least=0, most=1)
    clip: float | None = setting(1.0, "Largest norm of the gradient; null: not clipped.", above=0, most=1e9)
    ema: float | None = setting(0.99, "Rate of the running average of the weights; null: none.", least=0, most=0.999999)
    ema_start: int = setting(0, "Step at which the average starts, as a copy of the weights.", least=0, most=MOST)
    ema_warmup: bool = setting(False, "Average over fewer steps at first: rate at most n / (n + 10) after n of them.")


@dataclass(frozen=True)
class StageSection(Optimization):
    """What every stage has: a budget, and how its main network is optimised."""

    steps: int | None = setting(None, "Budget in optimizer steps; either this or minutes.", least=1, most=MOST)
    minutes: float | None = setting(None, "Budget in minutes of training; either this or steps.", above=0, most=1e6)
    batch: int | None = setting(None, "Samples per step over all processes; null: run.batch.", least=1, most=MOST)


@dataclass(frozen=True)
class Model:
    """The video model: sizes, or where published weights are."""

    checkpoint: str | None = setting(
        None,
        "What is trained: a folder of a diffusers transformer or pipeline, or a name of `longtake models`; "
        "null: a new one of the sizes below.",
    )
    teacher: str | None = setting(None, "The same for the teacher; null: that of the stage `teacher`.")
    critic: str | None = setting(None, "The same for the critic at its start; null: the teacher.")
    components: str | None = setting(
        None, "A diffusers folder with tokenizer, text_encoder and vae; null: those of the checkpoint, if there is one."
    )
    layers: int = setting(6, "Transformer blocks.", least=1, most=200)
    heads: int = setting(4, "Attention heads.", least=1, most=256)
    head_dim: int = setting(
        64, "Width of a head; even, at least 6 so that time, rows and columns have rotations.", least=6, most=512
    )
    ffn: int = setting(1024, "Width of the feed-forward layers.", least=1, most=10**6)
    channels: int = setting(16, "Channels of the latents.", least=1, most=1024)
    patch: int = setting(2, "Rows and columns of latent pixels per token.", least=1, most=16)
    text_dim: int = setting(128, "Width of the text embeddings.", least=1, most=10**5)
    text: str = setting(
        "words",
        "Where text embeddings come from: fixed random vectors per word, the components' text encoder, or that of the "
        "stage text_encoder.",
        choices=("words", "components", "stage"),
    )
    text_tokens: int = setting(24, "Words per caption, with text: words.", least=1, most=4096)
    frames: int = setting(21, "Latent frames of a clip.", least=1, most=1024)
    chunk: int = setting(3, "Latent frames of a chunk.", least=1, most=64)
    height: int = setting(8, "Rows of the latents.", least=1, most=1024, unit="latent pixels")
    width: int = setting(8, "Columns of the latents.", least=1, most=1024, unit="latent pixels")
    lora_rank: int = setting(
        0, "Rank of LoRA weights in the blocks' attention and feed-forward; 0: all is trained.", least=0, most=4096
    )
    lora_alpha: float | None = setting(None, "Scale of LoRA weights times their rank; null: the rank.", above=0)


@dataclass(frozen=True)
class Data:
    """What is learned from."""

    source: str = setting(
        "synthetic",
        "Moving patterns made on the spot; a folder of latents; a file of prompts; the pocket world.",
        choices=("synthetic", "latents", "prompts", "world"),
    )
    path: str | None = setting(None, "The folder or file, for latents and prompts; from the current folder.")
    clips: int = setting(256, "Different clips of the synthetic source.", least=1, most=MOST)
    held_out: int = setting(8, "Clips kept for samples and checks, never trained on.", least=1, most=10**6)
    cache: int = setting(600, "Clips kept in memory by sources that render theirs.", least=1, most=10**7)
    reuse: int = setting(16, "How often such a clip is used, on average, before another comes.", least=1, most=10**6)
    level: str = setting("full", "How much there is in the pocket world.", choices=("calm", "plain", "moving", "full"))


@dataclass(frozen=True)
class RunSection:
    """How training runs."""

    folder: str | None = setting(None, "Where everything goes; --folder has precedence.")
    stages: tuple[str, ...] | None = setting(None, "The stages of `longtake train pocket`; null: all, in their order.")
    seed: int = setting(0, "All that is drawn follows from it.", least=0, most=2**53)
    precision: str = setting("fp32", "Of forward and backward; weights stay float32.", choices=("fp32", "bf16"))
    batch: int = setting(8, "Samples per step, over all processes and accumulated parts.", least=1, most=MOST)
    accumulate: int = setting(
        1, "Parts that a process makes of its share of a step, to save memory.", least=1, most=10**6
    )
    checkpointing: bool = setting(False, "Compute activations again in the backward pass, to save memory.")
    compile: bool = setting(False, "Compile the transformer's blocks; needs a C++ compiler.")
    device: str = setting("auto", "Where to train; auto: a GPU if there is one.", choices=("auto", "cpu", "cuda"))
    fsdp: bool = setting(
        True,
        "With several processes: split weights, gradients and optimizer between them (FSDP2); "
        "false: every process has all of them.",
    )
    save_every: float = setting(120.0, "Between checkpoints; 0: after every step.", least=0, most=1e6, unit="seconds")
    sample_every: int = setting(500, "Steps between samples; 0: only at the end.", least=0, most=MOST)
    skip_bad_steps: int = setting(
        0,
        "Steps in a row with a loss or gradient that is not finite that are left out; one more stops the run.",
        least=0,
        most=1000,
    )
    failed_check: str = setting(
        "go-on", "What `longtake train pocket` does after a failed check.", choices=("go-on", "stop")
    )
    tensorboard: bool = setting(True, "Logs for TensorBoard too, if it is installed.")


@dataclass(frozen=True)
class Teacher(StageSection):
    """Bidirectional flow matching over whole clips."""

    text_dropout: float = setting(
        0.1, "Share of the clips trained without their caption, for guidance.", least=0, most=1
    )
    shift: float = setting(5.0, "Of the noise levels towards the noisy end.", above=0, most=100)
    guidance: float = setting(3.0, "Classifier-free guidance of samples.", least=0, most=100)
    sample_steps: int = setting(30, "Euler steps of samples.", least=1, most=1000)
    opening_share: float = setting(
        0.0, "Share of the budget, at its beginning, for first chunks alone: pictures before films.", least=0, most=1
    )
    opening_batch: int = setting(8, "First chunks per sample then.", least=1, most=4096)


@dataclass(frozen=True)
class Causal(StageSection):
    """The causal student, by teacher forcing or diffusion forcing."""

    forcing: str = setting("teacher", "Noisy chunks see clean pasts, or noisy ones.", choices=("teacher", "diffusion"))
    memories: tuple[str, ...] = setting(
        ("sliding:window=12,sink=3,ids=relative", "memrope"), "Memories that are trained with, mixed per batch."
    )
    text_dropout: float = setting(0.1, "Share of the clips trained without their caption.", least=0, most=1)
    shift: float = setting(5.0, "Of the noise levels towards the noisy end.", above=0, most=100)
    sampling_levels: float = setting(0.6, "Share of the noise levels that are those of sampling.", least=0, most=1)
    context_noise: float = setting(0.12, "Most noise on clean chunks that are remembered.", least=0, most=1)
    context_noise_share: float = setting(0.7, "Share of the sequences with such noise.", least=0, most=1)
    late_share: float = setting(0.5, "Share of the sequences from late in a take.", least=0, most=1)
    targets: int | None = setting(None, "Later chunks denoised per sequence, with teacher forcing; null: all.", least=1)
    first_chunks: int = setting(0, "First chunks trained alone, beside every sequence.", least=0, most=1000)


@dataclass(frozen=True)
class Consistency(StageSection):
    """The start for few steps: consistency distillation, or regression to the teacher's ODE."""

    method: str = setting("consistency", "How.", choices=("consistency", "ode"))
    guidance: float = setting(3.0, "Classifier-free guidance of the teacher.", least=0, most=100)
    timesteps: tuple[float, ...] = setting((1000.0, 750.0, 500.0, 250.0), "Before the shift.", above=0, most=1000)
    shift: float = setting(5.0, "Of the noise levels towards the noisy end.", above=0, most=100)
    ode_steps: int = setting(48, "Steps of the teacher's ODE from noise to clip.", least=1, most=1000)
    solver: str = setting("euler", "Of the ODE.", choices=("euler", "heun"))


@dataclass(frozen=True)
class Dmd(StageSection):
    """Self-forcing: own rollouts, distribution matching."""

    memories: tuple[str, ...] = setting(("sliding:window=12,sink=3,ids=relative",), "Of the rollouts, mixed per batch.")
    timesteps: tuple[float, ...] = setting((1000.0, 750.0, 500.0, 250.0), "Before the shift.", above=0, most=1000)
    shift: float = setting(5.0, "Of the noise levels towards the noisy end.", above=0, most=100)
    guidance: float = setting(3.0, "Classifier-free guidance of the real score.", least=0, most=100)
    min_step: float = setting(20.0, "Least timestep at which scores are compared.", least=0, most=1000)
    max_step: float = setting(980.0, "Largest timestep at which scores are compared.", least=0, most=1000)
    normalise: bool = setting(True, "Divide the gradient by the mean distance to the real score's x0.")
    generator_every: int = setting(5, "Steps of the critic per step of the generator.", least=1, most=1000)
    frames: int = setting(21, "Latent frames of a rollout.", least=1, most=10**5)
    gradient_chunks: int | None = setting(None, "Chunks at the end of a rollout with gradients; null: all.", least=1)
    critic: Optimization = section(
        Optimization,
        "How the critic is optimised.",
        lr=4e-7,
        betas=(0.0, 0.999),
        weight_decay=0.01,
        clip=10.0,
        ema=None,
    )


@dataclass(frozen=True)
class Long(Dmd):
    """The same on long takes, with prompt changes."""

    clip_frames: int = setting(21, "Latent frames that the scores see at once.", least=1, most=1024)
    overlap: int = setting(3, "Of them, frames of the clip before: not supervised again.", least=0, most=1023)
    prompt_changes: bool = setting(True, "Change the prompt once per take, at the start of a clip.")
    on_change: str = setting("recache", "What that does to the memory.", choices=("keep", "recache", "flush", "cut"))


@dataclass(frozen=True)
class LearnedMemory:
    """What the stages of a learned memory have besides."""

    trains: str = setting("all", "The model and its memory, or the memory alone.", choices=("all", "memory"))
    groups: int = setting(1, "Of layers, with a memory each.", least=1, most=1024)
    normalize_keys: bool = setting(True, "Normalise the memory's keys, as the transformer's own are.")
    memory: Optimization = section(
        Optimization, "How the memory is optimised.", lr=1e-5, betas=(0.0, 0.999), weight_decay=0.01, clip=1.0
    )


@dataclass(frozen=True)
class EchoShort(LearnedMemory, Dmd):
    """Echo-Infinity's learned memory, on short takes."""

    memories: tuple[str, ...] = setting(("echo",), "Of the rollouts, mixed per batch; one at least is echo.")
    start: str = setting(
        "dmd", "The stage it begins with, or model.checkpoint.", choices=("consistency", "dmd", "long", "checkpoint")
    )


@dataclass(frozen=True)
class EchoLong(LearnedMemory, Long):
    """The same on long takes."""

    memories: tuple[str, ...] = setting(("echo",), "Of the rollouts, mixed per batch; one at least is echo.")
    start: str = setting(
        "echo", "The stage it begins with, or model.checkpoint, with its memory.", choices=("echo", "checkpoint")
    )


@dataclass(frozen=True)
class Reconstruction(StageSection):
    """What is shown to an autoencoder, and what counts."""

    frames: int = setting(
        25, "Frames of a clip; fewer than 25 leave the receptive field untrained.", least=1, most=1000
    )
    crop: int = setting(64, "Rows and columns of crops.", least=8, most=4096, unit="pixels")
    moving: float = setting(5.0, "Weight of pixels on a subject, those of the background having 1.", above=0, most=1000)
    cuts: float = setting(0.15, "Share of the clips with a cut, as a change of prompt makes.", least=0, most=1)
    whole_every: int = setting(4, "Every so many steps a part of the samples is whole clips, not crops.", least=1)


@dataclass(frozen=True)
class Autoencoder(Reconstruction):
    """The pocket model's autoencoder."""

    kl: float = setting(5e-4, "Weight of the KL term.", least=0, most=1)
    base_dim: int = setting(16, "Channels of the encoder's first level.", least=1, most=1024)
    decoder_base_dim: int = setting(24, "Channels of the decoder's last level.", least=1, most=1024)


@dataclass(frozen=True)
class Decoder(Reconstruction):
    """Its decoder alone."""

    noise: float = setting(
        0.1, "Most noise on the latents, in their own deviation: what a denoiser makes is not exact.", least=0, most=1
    )


@dataclass(frozen=True)
class TextEncoder(StageSection):
    """The pocket model's text encoder."""

    width: int = setting(128, "Width of the embeddings; must be model.text_dim.", least=8, most=4096)
    layers: int = setting(1, "Blocks.", least=1, most=48)
    heads: int = setting(4, "Attention heads.", least=1, most=64)
