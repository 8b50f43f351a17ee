# Everything from a bare machine: Python (3.10 or newer) and make are enough; the rest goes into .venv.
#   make demo    a clip from a prompt and its contact sheet, in outputs/
#   make test    the tests            make lint    style and types
#   make clean   forget .venv and what the tools cached
# Another interpreter: make test PYTHON=python3.12.  Another index or a torch for the CPU only: make install PIP_ARGS="--index-url ..."

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
# Side by side, a thread each: tensors are small here. More than eight would only take memory.
PYTEST_ARGS ?= -q -n logical --maxprocesses 8
PROMPT ?= slow clouds drifting left over hills at dusk
FRAMES ?= 64

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint format clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "latentvid needs Python 3.10 or newer; name one with PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (torch is large; the first time takes minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/latentvid generate "$(PROMPT)" -o outputs/demo.mp4 --frames $(FRAMES) --contact-sheet outputs/demo.png --overwrite

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
