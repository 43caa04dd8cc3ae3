# make demo        train, generate and evaluate on built-in cells (DATA=... for your own)
# make test        set up, lint, test
# make test-slow   the tests marked slow as well, with what the extras `eval` and `server` bring
# make lint        ruff, pyright, import contracts
# make clean       remove what the tools wrote (never experiments or mlflow.db)
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint clean

VENV := .venv
STAMP := $(VENV)/.installed
STAMP_EVAL := $(VENV)/.installed-eval
BIN := $(CURDIR)/$(VENV)/bin

# Labels may hold spaces, quotes and signs: they reach the recipes as environment variables and
# are quoted there, never pasted into the command.
export DATA GENE CELL_TYPE_COL BATCH_COL CONTROL HOLD_OUT EXPERIMENT_DIR

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

$(VENV): $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@python=; \
	for candidate in $${PYTHON:-} python3.11 python3.12 python3.13 python3; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
	  then python=$$candidate; break; fi; \
	done; \
	if [[ -z $$python ]]; then \
	  echo "error: no Python 3.11, 3.12 or 3.13 found on PATH. Install one (Debian: python3.11-venv), or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 2; \
	fi; \
	[[ -x $(BIN)/python ]] || "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Tests of the judges are skipped without them, those of the lab server fail; slow tests bring both.
$(STAMP_EVAL): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,eval,server]'
	@touch $@

demo: $(STAMP)
	@arguments=(); \
	[[ -z $${DATA:-} ]] || arguments+=(-P "train_data_path=$$DATA"); \
	[[ -z $${GENE:-} ]] || arguments+=(-P "gene=$$GENE"); \
	[[ -z $${CELL_TYPE_COL:-} ]] || arguments+=(-P "cell_type_col=$$CELL_TYPE_COL"); \
	[[ -z $${BATCH_COL:-} ]] || arguments+=(-P "batch_col=$$BATCH_COL"); \
	[[ -z $${CONTROL:-} ]] || arguments+=(-P "control_name=$$CONTROL"); \
	[[ -z $${HOLD_OUT:-} ]] || arguments+=(-P "hold_out=$$HOLD_OUT"); \
	[[ -z $${EXPERIMENT_DIR:-} ]] || arguments+=(-P "experiment_dir=$$EXPERIMENT_DIR"); \
	export PATH="$(BIN):$$PATH" MLFLOW_DISABLE_TELEMETRY=true; \
	export MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"; \
	python -m pipelines.tracking open; \
	mlflow run . -e demo --env-manager local --experiment-name "$${MLFLOW_EXPERIMENT_NAME:-sedd}" "$${arguments[@]}"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-slow: $(STAMP_EVAL) lint
	$(BIN)/python -m pytest -m "slow or not slow" $(PYTEST_ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find sedd pipelines tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
