# make dpo | make test | make test-long | make ui | make lint | make clean     (EXTRA=cuda on machines with NVIDIA GPUs)
PYTHON ?= python3.11
EXTRA  ?= cpu
VENV   := .venv
PY     := $(VENV)/bin/python
LOCK   := infra/requirements/$(EXTRA).lock
READY  := $(VENV)/.ready-$(EXTRA)
RUN_DIR ?= runs/dpo-$(shell date +%Y%m%d-%H%M%S)
# Python writes the bytecode of what it imports, also where the shell forbids it: without, every one of a run's many
# processes compiles all it imports anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: dpo test test-long lint ui clean install

dpo: $(READY)
	$(PY) -m pipeline.run dpo --run-dir $(RUN_DIR)

# Fast tests first, then the real engines, then whole recipes.
test: lint
	$(PY) -m pytest -m "not engine and not e2e and not long"
	$(PY) -m pytest -m "engine and not long" --durations=8
	$(PY) -m pytest -m "e2e and not long" --durations=8

# What CI has no time for: four nodes, whole runs that are killed, second rounds, sweeps, the real dyad.
test-long: $(READY)
	$(PY) -m pytest -m "long"

lint: $(READY)
	$(VENV)/bin/ruff check .

ui: $(READY)
	$(VENV)/bin/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db --host 127.0.0.1 --port 5000

install: $(READY)

# Skipped while neither the lock nor pyproject.toml changed. Most modules are never imported: bytecode comes with use.
$(READY): $(LOCK) pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --no-deps --no-compile -r $(LOCK)
	$(VENV)/bin/pip install -q --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) runs
