"""Longtake live on many GPUs with Ray Serve: a server per GPU, and every session stays on its server.

serve run examples.ray_serve:app
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from longtake import load
from longtake.facts import ModelFacts
from longtake.live.app import make_app
from longtake.live.served import Served
from longtake.live.settings import Settings
from longtake.live.studio import Studio

MODEL = os.environ.get("LONGTAKE_MODEL", "pocket")
DATA = Path(os.environ.get("LONGTAKE_DATA", "live")).absolute()  # on a disk that all computers share
REPLICAS, GPUS = int(os.environ.get("LONGTAKE_REPLICAS", "2")), int(os.environ.get("LONGTAKE_GPUS", "1"))


def build() -> Any:
    """The server of one replica, with takes of its own: those of its rank, also after it was started again."""
    import torch

    device, dtype = ("cuda", torch.bfloat16) if GPUS else ("cpu", torch.float32)
    rank = serve.get_replica_context().rank.rank
    settings = Settings(
        DATA / f"replica{rank}",
        host="0.0.0.0",
        token=os.environ["LONGTAKE_TOKEN"],
        allow_hosts=tuple(os.environ.get("LONGTAKE_HOSTS", "").split()),
    )
    served = Served(ModelFacts.read(MODEL), str(dtype).removeprefix("torch."))
    return make_app(Studio(settings, served, {device: lambda: load(MODEL, dtype, device)}))


app = serve.deployment(
    num_replicas=REPLICAS,
    ray_actor_options={"num_gpus": GPUS},
    max_ongoing_requests=1000,  # every viewer is one
    request_router_config=RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
        request_router_kwargs={"num_fallback_replicas": 0},  # another replica does not have the take
    ),
)(serve.ingress(build)()).bind()
