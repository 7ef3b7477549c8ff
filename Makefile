# The README's commands. Each sets up what it needs: a virtual environment, uv in it, then everything else.

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
READY := $(VENV)/.ready
INSTALL = VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --constraints constraints.txt
MMPOSE := models/pretrained/mmpose.txt

export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: setup demo test lint bench weights clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(MMPOSE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(INSTALL) --editable ".[all,test,lint]" opencv-python-headless
	$(INSTALL) --no-deps --requirements $(MMPOSE)
	touch $(READY)

# Draws the demo's videos where they are missing, then builds what is out of date.
demo: $(READY)
	harcache demo
	dvc repro report@demo
	dvc metrics show metrics/demo.json

# Files of tests go to two processes: many of them wait for commands, and each process may take 4 GB.
test: $(READY)
	python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 30

lint: $(READY)
	ruff check .
	ruff format --check .
	mkdir -p $(VENV)/names && ln -sfn ../.. $(VENV)/names/harcache
	mypy

# The README's figures of speed, on this machine; the loader's rivals are installed for it.
bench: $(READY)
	$(INSTALL) --editable ".[bench]"
	harcache bench loader
	harcache bench model

# The demo's small detector and pose network, from nothing; takes about two hours on two cores.
weights: $(READY)
	python scripts/train_demo_weights.py all

clean:
	rm -rf data metrics report videos/demo dvc.lock
