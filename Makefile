# `make demo` and `make test` need python3 (3.10 or later), git and make; the rest goes into .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# two busy OpenMP processes on two cores stall each other unless they wait passively
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test lint format bench endurance evidence evidence-full train-pocket clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt scripts/make-venv
	scripts/make-venv $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/longtake generate "a red ball rolls over a meadow" --seconds 10 --out demo.mp4 --overwrite

# side by side, one thread each: most of the time goes into starting Python
WORKERS ?= 2
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.cost --json benchmarks/results/cost.json

# a day of video in one take; continues where it was stopped. MEMORY=echo, MORE="--memory-weights FOLDER" for a learned one
MEMORY ?= memrope
endurance: setup
	$(BIN)/python -m benchmarks.endurance --out runs/endurance-$(MEMORY) --memory $(MEMORY) $(MORE)

# the study of docs/evidence: its small part, in minutes; and all the others, about a day on two cores. Both go on where
# they were stopped, and write runs/evidence/PART/report.html
evidence: setup
	$(BIN)/python -m benchmarks.evidence

evidence-full: setup
	$(BIN)/python -m benchmarks.evidence --full

# the shipped model, from nothing: about two hours on two cores; continues where it was stopped
TRAIN := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m
train-pocket: setup
	$(TRAIN) longtake.training.autoencoder --folder runs/pocket --minutes 28
	$(TRAIN) longtake.training.denoiser --folder runs/pocket --minutes 48
	$(TRAIN) longtake.training.rollout --folder runs/pocket --minutes 30
	$(BIN)/python -m longtake.training.export --folder runs/pocket --out src/longtake/pocket/weights

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
