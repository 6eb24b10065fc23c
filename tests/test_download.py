"""Downloading models from a hub on this computer: whole, broken off, refused and damaged."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers_hub import Hub, closed_port, environment, folder_content, serve, write_registry

MODEL, LORA, BASE = "me/model", "me/lora", "me/base"
WEIGHTS = "checkpoints/model.pt"
PARTS = ["model_index.json", "scheduler/*", "transformer/config.json", "vae/*", "tokenizer/*", "text_encoder/*"]
# The library takes files in pieces of 10 MB; here they are small, as the files are.
COMMAND = """
import sys
from huggingface_hub import constants
from longtake.cli_models import download_command
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
sys.exit(download_command(sys.argv[1:]))
"""
LIST = "import sys; from longtake.cli_models import models_command; sys.exit(models_command('--json' in sys.argv))"
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[Hub]:
    """A model of 600 kB with a LoRA, and a whole diffusers folder to take the other parts from."""
    noise = random.Random(0)
    repos = {
        MODEL: {WEIGHTS: noise.randbytes(600_000), "README.md": b"a model"},
        LORA: {"lora.safetensors": noise.randbytes(20_000)},
        BASE: folder_content(tiny_folder),
    }
    with serve(repos) as hub:
        yield hub


def entry(hub: Hub, **more: Any) -> dict[str, Any]:
    loras = [{"file": hub.file(LORA, "lora.safetensors"), "key": "generator_lora", "scale": 0.5}]
    transformer = hub.file(MODEL, WEIGHTS)
    return {"transformer": transformer, "base": "parts", "key": "generator_ema", "loras": loras, **more}


def base(hub: Hub, **more: Any) -> dict[str, Any]:
    return {"parts": {"repo": BASE, "revision": hub.commit(BASE), "files": PARTS, **more}}


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """An environment with an empty cache, in which ``mine`` is the hub's model."""
    return environment(hub, tmp_path, write_registry(tmp_path / "models.yaml", {"mine": entry(hub)}, base(hub)))


def run(env: dict[str, str], *arguments: str, code: str = COMMAND) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


def refused(made: subprocess.CompletedProcess[str], *says: str, code: int = 2) -> str:
    """Ended with one sentence that says all this; returns it."""
    last = made.stderr.splitlines()[-1]
    assert made.returncode == code and not made.stdout, made
    assert last.startswith("Error: ") and last.endswith(".") and made.stderr.count("Error") == 1, made.stderr
    assert "Traceback" not in made.stderr
    for text in says:
        assert text in last, last
    return last


def cache_of(env: dict[str, str], repo: str) -> Path:
    return Path(env["HF_HOME"]) / "hub" / f"models--{repo.replace('/', '--')}"


def partials(env: dict[str, str]) -> list[Path]:
    return list(Path(env["HF_HOME"]).rglob("*.incomplete"))


def located(env: dict[str, str], name: str = "mine") -> dict[str, Any] | None:
    """What ``locate`` finds, in a process that cannot reach any hub."""
    code = f"""
import json
from longtake.checkpoints.hub import locate
from longtake.checkpoints.registry import find_info
found = locate(find_info({name!r}))
print(json.dumps(found and {{"transformer": str(found.transformer), "components": str(found.components),
    "key": found.key, "loras": [(str(x.path), x.scale, x.key) for x in found.loras]}}))
"""
    made = run({**env, "HF_ENDPOINT": closed_port()}, code=code)
    assert made.returncode == 0, made.stderr
    found: dict[str, Any] | None = json.loads(made.stdout)
    return found


def test_whole_model(hub: Hub, env: dict[str, str]) -> None:
    """All files arrive with their bytes, the base's transformer weights do not, and then nothing is asked for again."""
    assert located(env) is None
    made = run(env, "mine")
    assert made.returncode == 0, made.stderr
    announced = made.stderr.splitlines()[0]
    assert announced.startswith("mine (licence: not stated): ") and str(cache_of(env, MODEL).parent) in announced
    assert " are free." in announced and MODEL in announced and BASE in announced

    found = located(env)
    assert found is not None and found["key"] == "generator_ema"
    assert made.stdout == f"{found['transformer']}\n"
    assert Path(found["transformer"]).read_bytes() == hub.repos[MODEL][WEIGHTS]
    [(lora, scale, key)] = found["loras"]
    assert Path(lora).read_bytes() == hub.repos[LORA]["lora.safetensors"] and (scale, key) == (0.5, "generator_lora")
    got = folder_content(Path(found["components"]))
    wanted = {p: c for p, c in hub.repos[BASE].items() if not p.startswith("transformer/") or p.endswith("config.json")}
    assert got == wanted and len(wanted) < len(hub.repos[BASE])
    assert not partials(env) and not hub.downloads("README.md")

    hub.requests.clear()
    again = run(env, "mine", "mine")
    assert (again.returncode, again.stdout) == (0, made.stdout) and "is here already" in again.stderr
    assert run({**env, "HF_HUB_OFFLINE": "1"}, "mine").stdout == made.stdout
    assert hub.requests == []


def test_announces_what_is_fetched(hub: Hub, env: dict[str, str]) -> None:
    """The announced size is the sum of what the server then sends."""
    code = """
from longtake.checkpoints.hub import plan
from longtake.checkpoints.registry import find_info
for ask in (True, False):
    wanted = plan(find_info("mine"), ask=ask)
    print(wanted.missing, wanted.total, wanted.exact, wanted.complete, len(wanted.files))
"""
    needed = {p: c for p, c in hub.repos[BASE].items() if not p.startswith("transformer/") or p.endswith("config.json")}
    total = sum(map(len, needed.values())) + 620_000
    asked, unasked = run(env, code=code).stdout.splitlines()
    assert asked == f"{total} {total} True False {len(needed) + 2}"
    assert unasked == f"620000 620000 False False {len(PARTS) + 2}"  # nobody has said how large the base is
    assert run(env, "mine").returncode == 0
    hub.requests.clear()
    asked, unasked = run(env, code=code).stdout.splitlines()
    assert asked.startswith("0 ") and " True " in asked and hub.requests == []
    # Where the hub does not answer, what the registry says.
    elsewhere = {**env, "HF_ENDPOINT": closed_port(), "HF_HOME": env["HF_HOME"] + "2"}
    assert run(elsewhere, code=code).stdout.splitlines() == [f"620000 620000 False False {len(PARTS) + 2}"] * 2


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_resumes_after_a_kill(hub: Hub, env: dict[str, str], number: signal.Signals) -> None:
    """What was there of a file is not fetched again."""
    hub.stalls[WEIGHTS] = 400_000
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "mine"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert hub.stalled.wait(60)
        deadline = time.monotonic() + 60
        while sum(p.stat().st_size for p in partials(env)) < 300_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
    hub.go_on.set()
    assert not out and located(env) is None
    if number == signal.SIGINT:
        assert process.returncode == 130 and "to go on: longtake download mine" in err and "Traceback" not in err
    content = hub.repos[MODEL][WEIGHTS]
    [partial] = partials(env)
    there = partial.read_bytes()
    assert 300_000 <= len(there) <= 400_000 and content.startswith(there)
    hub.requests.clear()
    made = run(env, "mine")
    assert made.returncode == 0, made.stderr
    assert "are here already" in made.stderr
    assert [r.range for r in hub.downloads(WEIGHTS)] == [f"bytes={len(there)}-"]
    found = located(env)
    assert found is not None and Path(found["transformer"]).read_bytes() == content
    assert not partials(env)


def test_resumes_after_a_break(hub: Hub, env: dict[str, str]) -> None:
    """A connection that is closed in mid-file is taken up within the same run, as often as it gets on."""
    hub.breaks[WEIGHTS] = 250_000
    made = run(env, "mine")
    assert made.returncode == 0, made.stderr
    ranges = [r.range for r in hub.downloads(WEIGHTS)]
    assert ranges[0] is None and len(ranges) == 3 and all(r and r.startswith("bytes=") for r in ranges[1:])
    found = located(env)
    assert found is not None and Path(found["transformer"]).read_bytes() == hub.repos[MODEL][WEIGHTS]
    assert not partials(env)


def test_server_without_ranges(hub: Hub, env: dict[str, str]) -> None:
    """Where the hub sends the whole file again, it is not put behind what is there."""
    content = hub.repos[MODEL][WEIGHTS]
    blobs = cache_of(env, MODEL) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hub.file(MODEL, WEIGHTS)['sha256']}.incomplete").write_bytes(content[:123_456])
    hub.ranges = False
    assert run(env, "mine").returncode == 0
    found = located(env)
    assert found is not None and Path(found["transformer"]).read_bytes() == content


@pytest.mark.parametrize("left", ["as long", "too long", "another beginning"])
def test_partial_file_that_is_wrong(hub: Hub, env: dict[str, str], left: str) -> None:
    """A partial file of other bytes is found out by the hash, removed, and the next run is right."""
    content = hub.repos[MODEL][WEIGHTS]
    blobs = cache_of(env, MODEL) / "blobs"
    blobs.mkdir(parents=True)
    bad = {"as long": bytes(600_000), "too long": bytes(600_001), "another beginning": bytes(1000)}[left]
    (blobs / f"{hub.file(MODEL, WEIGHTS)['sha256']}.incomplete").write_bytes(bad)
    made = run(env, "mine")
    if left != "too long":
        refused(made, "its hash differs", "it was removed")
        assert not partials(env) and located(env) is None
        made = run(env, "mine")
    assert made.returncode == 0, made.stderr
    found = located(env)
    assert found is not None and Path(found["transformer"]).read_bytes() == content


@pytest.mark.parametrize("path", [WEIGHTS, "vae/diffusion_pytorch_model.safetensors"])
def test_damaged_on_the_way(hub: Hub, env: dict[str, str], path: str) -> None:
    repo = MODEL if path == WEIGHTS else BASE
    right = hub.repos[repo][path]
    hub.delivers[path] = right[:-1] + bytes([right[-1] ^ 1])
    refused(run(env, "mine"), path, repo, "its hash differs", "it was removed")
    assert located(env) is None and not partials(env)
    assert all(p.read_bytes() != hub.delivers[path] for p in cache_of(env, repo).rglob("*") if p.is_file())
    del hub.delivers[path]
    assert run(env, "mine").returncode == 0


def test_damaged_small_file(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    """Small files are checked where the registry has their hash."""
    files = [hub.file(BASE, path) for path in hub.repos[BASE] if path.startswith(("vae", "model_index"))]
    for file in files:
        del file["repo"], file["revision"]
    registry = write_registry(tmp_path / "pinned.yaml", {"mine": entry(hub)}, base(hub, files=files))
    env = {**env, "LONGTAKE_MODELS": str(registry)}
    hub.delivers["vae/config.json"] = b" " * len(hub.repos[BASE]["vae/config.json"])
    refused(run(env, "mine"), "vae/config.json", "its hash differs")
    assert not any(p.name == "config.json" for p in cache_of(env, BASE).rglob("*"))
    hub.delivers.clear()
    assert run(env, "mine").returncode == 0


def test_another_file_than_the_registry_knows(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    """Found out before a byte of it is fetched."""
    other = entry(hub, transformer=hub.file(MODEL, WEIGHTS, sha256="0" * 64))
    registry = write_registry(tmp_path / "other.yaml", {"mine": other}, base(hub))
    refused(run({**env, "LONGTAKE_MODELS": str(registry)}, "mine"), WEIGHTS, "not the file that the registry knows")
    assert not hub.downloads(WEIGHTS)


def test_truncated_in_the_cache(hub: Hub, env: dict[str, str]) -> None:
    """A file of another size than the registry says does not count, and is fetched again."""
    assert run(env, "mine").returncode == 0
    found = located(env)
    assert found is not None
    Path(found["transformer"]).resolve().write_bytes(b"half")
    assert located(env) is None
    assert run(env, "mine").returncode == 0
    assert Path(found["transformer"]).read_bytes() == hub.repos[MODEL][WEIGHTS]


def test_missing_and_forbidden(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    def attempt(**more: Any) -> subprocess.CompletedProcess[str]:
        registry = write_registry(tmp_path / "changed.yaml", {"mine": entry(hub, **more)}, base(hub))
        return run({**env, "LONGTAKE_MODELS": str(registry)}, "mine")

    nowhere = {"repo": "me/nothing", "path": "a.pt"}
    refused(attempt(transformer=nowhere), "There is no repository me/nothing at 127.0.0.1:")
    refused(attempt(transformer=hub.file(MODEL, WEIGHTS, path="b.pt")), MODEL, "has no file b.pt")
    refused(attempt(transformer=hub.file(MODEL, WEIGHTS, path="b/*")), MODEL, "has no file b/*")
    refused(attempt(transformer=hub.file(MODEL, WEIGHTS, revision="0" * 40)), MODEL, "has no revision 000")
    hub.gated.add(MODEL)
    refused(attempt(), MODEL, "accepted its terms", "hf auth login")
    refused(run({**env, "HF_TOKEN": "hf_of_somebody"}, "mine"), MODEL, "accepted its terms")
    hub.gated.clear()
    for status, says in ((403, "does not give"), (429, "too many requests"), (500, "status 500"), (503, "status 503")):
        hub.status[MODEL] = status
        refused(attempt(), says)
    # All of this was found out before anything was fetched.
    assert not any("/resolve/" in request.path for request in hub.requests)


def test_no_network(env: dict[str, str]) -> None:
    env = {**env, "HF_ENDPOINT": closed_port()}
    made = run(env, "mine")
    says = [
        f"The model mine (about 620 kB from {MODEL} and {LORA} and {BASE})",
        "127.0.0.1:",
        "does not answer",
        "longtake download mine",
        "HF_HOME",
        "--model PATH",
    ]
    refused(made, *says)
    assert len(made.stderr.splitlines()) == 1
    offline = run({**env, "HF_HUB_OFFLINE": "1"}, "mine")
    refused(offline, "about 620 kB", MODEL, "HF_HUB_OFFLINE", "--model PATH")
    assert len(offline.stderr.splitlines()) == 1
    assert not Path(env["HF_HOME"]).exists() or not partials(env)


def test_network_that_goes_away(hub: Hub, env: dict[str, str]) -> None:
    """A hub that answers questions and then delivers nothing: what is there stays."""
    code = "import huggingface_hub.file_download as f; f.time.sleep = lambda s: None" + COMMAND  # tries again at once
    hub.breaks[WEIGHTS] = 0
    refused(run(env, "mine", code=code), WEIGHTS, "does not answer", "goes on from what is here")
    hub.breaks.clear()
    assert run(env, "mine").returncode == 0


def test_full_disk(hub: Hub, env: dict[str, str], small_disk: Path) -> None:
    """Said before anything is fetched: 400 kB are not enough for a file of 600 kB."""
    made = run({**env, "HF_HOME": str(small_disk / "hf")}, "mine")
    refused(made, "needs", "more on the disk of", str(small_disk), "are free", "HF_HOME")
    assert not hub.downloads(WEIGHTS) and not [p for p in small_disk.rglob("*") if p.is_file()]


def test_disk_that_gets_full(hub: Hub, env: dict[str, str], small_disk: Path, tmp_path: Path) -> None:
    """Somebody else writes to the disk meanwhile; with room again, it goes on."""
    hub.repos = {MODEL: {WEIGHTS: random.Random(1).randbytes(250_000)}}
    registry = tmp_path / "small.yaml"
    parts = tmp_path / "parts"
    parts.mkdir()
    write_registry(
        registry, {"mine": {"transformer": hub.file(MODEL, WEIGHTS), "base": "here"}}, {"here": {"folder": str(parts)}}
    )
    env = {**env, "HF_HOME": str(small_disk / "hf"), "LONGTAKE_MODELS": str(registry)}
    hub.stalls[WEIGHTS] = 50_000

    def fill() -> None:
        assert hub.stalled.wait(60)
        with (small_disk / "other").open("wb", buffering=0) as other:
            try:
                while other.write(bytes(10_000)):
                    pass
            except OSError:
                pass
        hub.go_on.set()

    thread = threading.Thread(target=fill)
    thread.start()
    made = run(env, "mine")
    thread.join(60)
    refused(made, "The disk of", "is full", "HF_HOME")
    (small_disk / "other").unlink()
    assert run(env, "mine").returncode == 0
    found = located(env)
    assert found is not None and Path(found["transformer"]).read_bytes() == hub.repos[MODEL][WEIGHTS]


def test_folder_that_cannot_be_written(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    refused(run({**env, "HF_HOME": str(tmp_path / "file" / "hf")}, "mine"), "cannot be saved", "set HF_HOME")


def test_branch(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    """An entry that is not pinned: one commit is fetched as a whole, and found again; a newer one is left alone."""
    loose = {"transformer": {"repo": BASE, "path": "transformer/*"}, "base": "parts", "loras": []}
    registry = write_registry(tmp_path / "loose.yaml", {"mine": loose}, base(hub, revision="main"))
    env = {**env, "LONGTAKE_MODELS": str(registry)}
    first = hub.commit(BASE)
    assert run(env, "mine").returncode == 0
    found = located(env)
    assert found is not None and found["transformer"] == found["components"] and found["transformer"].endswith(first)
    assert folder_content(Path(found["transformer"])) == hub.repos[BASE]

    old, folder = dict(hub.repos[BASE]), Path(found["transformer"])
    hub.repos[BASE]["vae/config.json"] = b"{}"
    hub.requests.clear()
    assert run(env, "mine").returncode == 0 and not hub.requests
    (folder / "model_index.json").unlink()  # something is missing: then all of it from the newer commit
    assert run(env, "mine").returncode == 0
    found = located(env)
    assert found is not None and found["transformer"].endswith(hub.commit(BASE))
    assert folder_content(Path(found["components"])) == {**old, "vae/config.json": b"{}"}
    assert not [r for r in hub.requests if "/cdn/" in r.path and r.method == "GET"]  # weights are the same


def test_incomplete_folder(hub: Hub, env: dict[str, str]) -> None:
    """A pattern is complete when its weights are."""
    assert run(env, "mine").returncode == 0
    found = located(env)
    assert found is not None
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (Path(found["components"]) / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert located(env) is None


def test_bad_names(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    refused(run(env, "mine", "sora"), "There is no model 'sora'", "pocket")
    refused(run(env), "longtake download self-forcing")
    assert not hub.requests
    made = run(env, "pocket")
    assert made.returncode == 0 and (Path(made.stdout.strip()) / "model_index.json").is_file()
    registry = write_registry(tmp_path / "b.yaml", {"gone": {"folder": "gone"}, "w": entry(hub, transformer="w.pt")})
    registry.write_text(registry.read_text().replace('"parts"', '"wan-1.3b"'))
    env = {**env, "LONGTAKE_MODELS": str(registry)}
    refused(run(env, "gone"), str(registry), "'gone'", "which is not there")
    refused(run(env, "w"), str(registry), str(tmp_path / "w.pt"), "which is not there")


def test_list(hub: Hub, env: dict[str, str]) -> None:
    def entry_of(text: str, name: str) -> str:
        return text[text.index(f"\n{name}: ") :].split("\n", 2)[2].split("\n" + name[0])[0]

    before = run(env, code=LIST)
    assert before.returncode == 0 and not hub.requests
    for name in ("pocket", "self-forcing", "longlive", "causal-forcing", "krea-realtime", "mine"):
        assert f"\n{name}: " in "\n" + before.stdout
    listed = entry_of(before.stdout, "self-forcing")
    for text in ("1.4 billion parameters", "832x480", "memrope", "CC BY-NC-SA 4.0", "28.9 GB", "commit 2f8b779212da"):
        assert text in listed
    assert "https://huggingface.co/gdhe17/Self-Forcing" in listed and "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in listed
    assert env["LONGTAKE_MODELS"] in before.stdout and "ships with Longtake" in before.stdout
    assert run(env, "mine").returncode == 0
    after = run(env, code=LIST)
    found = located(env)
    assert found is not None and f"here: {found['transformer']}" in after.stdout

    data = {item["name"]: item for item in json.loads(run(env, "--json", code=LIST).stdout)}
    assert data["mine"]["place"] == found["transformer"] and data["mine"]["missing_bytes"] == 0
    assert data["longlive"]["pinned"] is True and data["longlive"]["place"] is None
    assert data["longlive"]["download_bytes"] == 31_729_134_813
    bad = Path(env["LONGTAKE_MODELS"])
    bad.write_text("models: {x: {fps: 3}}")
    refused(run(env, code=LIST), str(bad), "'x'")
