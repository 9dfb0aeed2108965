# make dpo | make test | make test-long | make lint | make docs | make ui | make web | make lock | make clean
# EXTRA=cuda on machines with NVIDIA GPUs; PYTHON=python3.13 for another Python (3.11 to 3.13).
PYTHON ?= python3.11
EXTRA  ?= cpu
VENV   := .venv
PY     := $(VENV)/bin/python
LOCKS  := infra/requirements/$(EXTRA).lock infra/requirements/dev.lock
READY  := $(VENV)/.ready-$(EXTRA)
VIDEO  := $(VENV)/.ready-video
FAST   := -m "not engine and not e2e and not long"
ORT    := pipeline/serve/web/vendor/ort
ORT_FILES := ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm
RUN_DIR ?= runs/dpo-$(shell date +%Y%m%d-%H%M%S)
# Of one GPU; `make dpo EXTRA=cuda SHARES="learner.gpus=1 ..."` for more.
SHARES ?= $(if $(filter cuda,$(EXTRA)),learner.world_size=1 learner.gpus=0.5 rollout.workers=1 rollout.gpus=0.5)
# Python writes the bytecode of what it imports, also where the shell forbids it: without, every one of a run's many
# processes compiles all it imports anew.
export PYTHONDONTWRITEBYTECODE :=

# uv installs the locks in a quarter of pip's time and is used where it is there (`make UV=` takes pip). It does not
# read pip's settings: folders and indexes that pip is told of by its environment variables are passed on. Looking
# into every index is safe here, since what does not have a hash of the lock is refused.
UV := $(shell command -v uv)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_EXTRA_INDEX_URL ?= $(PIP_EXTRA_INDEX_URL)
export UV_INDEX_STRATEGY ?= unsafe-best-match
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(PY),$(PY) -m pip install --quiet --no-compile)

.PHONY: dpo test fast-pipeline fast-others test-long lint types docs ui web install lock clean

dpo: $(READY)
	$(PY) -m pipeline.run dpo --run-dir $(RUN_DIR) $(SHARES)

# Fast tests and lint first, side by side; then the real engines, then whole recipes.
test: $(READY) $(VIDEO)
	$(MAKE) --jobs=2 --output-sync=target lint fast-pipeline fast-others
	$(PY) -m pytest -m "engine and not long" --durations=8
	$(PY) -m pytest -m "e2e and not long" --durations=8

# As long as each other, lint with the latter: the pipeline's tests but those named by d to f and l to p, and all others.
fast-pipeline: $(READY)
	$(PY) -m pytest $(FAST) tests/pipeline --ignore-glob='tests/pipeline/test_[d-fl-p]*'

fast-others: $(READY)
	$(PY) -m pytest $(FAST) --ignore-glob='tests/pipeline/test_[!d-fl-p]*'

# What CI has no time for: four nodes, whole runs that are killed, second rounds, sweeps, the real dyad, captions by
# vLLM, whole runs of a policy that nothing here knows of.
test-long: $(READY)
	$(PY) -m pytest -m "long"

lint: $(READY) types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The folders as they are inside the wheel: mypy does not follow the path that rapport/__init__.py extends.
types: $(READY)
	$(PY) infra/tree.py
	cd .types && ../$(VENV)/bin/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache

docs: $(READY)
	$(VENV)/bin/mkdocs build --quiet --strict

ui: $(READY)
	$(VENV)/bin/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db --host 127.0.0.1 --port 5000

# What a page computes with by itself, for the recipe `export` (needs npm): 14 MB that are not in the repository.
web:
	cd infra/web && npm ci --ignore-scripts --no-audit --no-fund
	mkdir -p $(ORT)
	cd infra/web/node_modules/onnxruntime-web && cp $(addprefix dist/,$(ORT_FILES)) $(CURDIR)/$(ORT)
	rm -rf infra/web/node_modules

install: $(READY)

# Skipped while neither the locks nor pyproject.toml changed. Most modules are never imported: bytecode comes with use.
$(READY): $(LOCKS) pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-deps --require-hashes $(addprefix -r ,$(LOCKS))
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

# The extra `video`: tests track faces, recipes do so only for films.
$(VIDEO): infra/requirements/video.lock $(READY)
	$(INSTALL) --no-deps --require-hashes -r $<
	touch $@

# After a version in a lock was changed: the hashes of its files (needs uv).
lock:
	$(PYTHON) infra/requirements/lock.py $(wildcard infra/requirements/*.lock)

clean:
	rm -rf $(VENV) .types .mypy_cache site runs
