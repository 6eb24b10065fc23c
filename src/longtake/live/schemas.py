"""What the API takes and gives, for OpenAPI. The meaning of every field is in ``docs/live-protocol.md``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from longtake.live.settings import Limits

Change = Literal["keep", "recache", "flush", "cut"]
_LIMITS = Limits()
MAX_SEED = 2**31 - 1
Prompt = Annotated[
    str,
    Field(
        min_length=1,
        max_length=_LIMITS.prompt_characters,
        # A prompt ends up in scripts, logs and command lines: no control characters.
        pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$",
        description="One prompt, taken as it is (no script).",
        examples=["a red ball rolls over a meadow"],
    ),
]


class Strict(BaseModel):
    """A request in which nothing may stand that is not known: a misspelt field would be lost."""

    model_config = ConfigDict(extra="forbid", strict=True)


class CreateTake(Strict):
    """A new take. Only the prompt must be given."""

    prompt: Prompt
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Of all noise; drawn by the server if not given.")
    memory: str | None = Field(
        None,
        max_length=300,
        description="As on the command line: a name of /api/info, with settings if wanted.",
        examples=["memrope:recent=4"],
    )
    on_change: Change = Field("keep", description="What a new prompt does to the past if it does not say so itself.")
    width: int | None = Field(None, ge=2, le=16384, description="In pixels; the model's own by default.")
    height: int | None = Field(None, ge=2, le=16384, description="In pixels; the model's own by default.")
    max_seconds: float | None = Field(
        None, ge=1, le=366 * 24 * 3600, description="Length at which the take is finished; at most the server's own."
    )


class SteerTake(Strict):
    """A prompt that takes effect with the next chunk."""

    prompt: Prompt
    change: Change | None = Field(None, description="What it does to the past; the take's on_change by default.")


class Problem(BaseModel):
    """Why a request was refused."""

    code: str = Field(description="For programs.", examples=["not_found"])
    message: str = Field(description="One sentence for people.")


class Error(BaseModel):
    """The body of every answer with a status of 400 or above."""

    error: Problem


class Status(BaseModel):
    """For those who look after the process."""

    status: str


class Holding(BaseModel):
    """The prompt that holds at the newest frame."""

    id: int
    prompt: str


class Speed(BaseModel):
    """How fast chunks are made, waiting not counted."""

    frames_per_second: float
    real_time: float = Field(description="Multiple of real time.")


class Entry(BaseModel):
    """A prompt on the timeline of a take."""

    id: int
    prompt: str
    change: Change | None
    state: Literal["waiting", "holds", "replaced", "refused"]
    asked: float
    asked_frame: int
    frame: int | None
    seconds: float | None
    chunk: int | None
    latency: float | None
    message: str | None


class Slot(BaseModel):
    """A frame, or what stands for many, in a take's memory."""

    role: str
    id: int | None
    latent: int | None
    frame: int | None
    age: float | None
    rate: float | None
    picture: str | None


class Memory(BaseModel):
    """What a chunk attended to."""

    chunk: int
    first_frame: int
    capacity: int
    slots: list[Slot]


class Take(BaseModel):
    """A take and how far it is."""

    id: str
    state: Literal["queued", "starting", "running", "paused", "finished", "failed"]
    reason: str | None
    message: str | None
    place: int | None = Field(description="In the queue, from 1.")
    can_continue: bool
    created: float
    model: str
    memory: str
    seed: int
    on_change: Change
    width: int
    height: int
    fps: int
    first_chunk_frames: int
    chunk_frames: int
    frames: int
    seconds: float
    chunks: int
    max_seconds: float
    prompt: Holding
    prompts: int
    viewers: int
    speed: Speed | None
    latency: float | None
    bytes: int
    snapshot_frame: int | None
    thumbnails: int
    device: str | None


class WholeTake(Take):
    """A take with all that was said, and what it remembers."""

    timeline: list[Entry]
    memory_state: Memory | None


class Takes(BaseModel):
    """All takes, the newest first."""

    takes: list[Take]


class Entries(BaseModel):
    """All that was said."""

    entries: list[Entry]


class Snapshot(BaseModel):
    """A snapshot that is safe on the disk."""

    frame: int = Field(description="Frames that it continues after.")
    seconds: float
    bytes: int
    url: str


class Repeat(BaseModel):
    """How to make a take again."""

    command: str
    script: str
    frames: int
    seconds: float
    exact: bool
    note: str | None


class Knows(BaseModel):
    """The closed vocabulary of a model."""

    class Group(BaseModel):
        """Ways to say one kind of thing."""

        name: str
        words: list[str]

    summary: str
    groups: list[Group]
    max_words: int


class Model(BaseModel):
    """A model that takes are made with."""

    name: str
    width: int
    height: int
    fps: int
    size_step: int
    first_chunk_frames: int
    chunk_frames: int
    license: str | None
    knows: Knows | None
    examples: list[str]


class MemoryKind(BaseModel):
    """A memory by name."""

    class Setting(BaseModel):
        """What may be set about it."""

        name: str
        value: int | float | str | bool
        type: str
        choices: list[str] | None

    class Slots(BaseModel):
        """Slots of one role, once the memory is full."""

        role: str
        count: int

    name: str
    description: str
    paper: str
    available: bool
    settings: list[Setting]
    slots: list[Slots]
    capacity: int


class ChangeKind(BaseModel):
    """What a new prompt may do to the past."""

    name: Change
    description: str


class Device(BaseModel):
    """Where takes are made."""

    name: str
    ready: bool
    running: str | None
    queued: int


class Info(BaseModel):
    """What there is."""

    version: str
    protocol: int
    models: list[Model]
    memories: list[MemoryKind]
    changes: list[ChangeKind]
    defaults: dict[str, str | int | None]
    limits: dict[str, int | float]
    devices: list[Device]
    thumbnail_every: float
    idle_pause: float | None
    ahead: float
