# maskdm: make demo (set-up and the main job), make test (set-up and all checks)
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help setup demo test lint bench report preset clean

help:
	@echo 'make demo            set up and run the pipeline of params.yaml (about 12 minutes on 2 cores)'
	@echo 'make test            set up, lint, check types, run all tests'
	@echo 'make setup           only the environment: .venv from requirements.lock'
	@echo 'make preset NAME=…   copy presets/NAME.yaml over params.yaml ($(basename $(notdir $(wildcard presets/*.yaml))))'
	@echo 'make bench           measure speed against this machine'"'"'s limits, into reports/bench.json'
	@echo 'make report          the plots of the workspace as one page, dvc_plots/index.html'

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.lock pyproject.toml stages/plots_page.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'maskdm needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --disable-pip-version-check -r requirements.lock
	pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	python -m stages.plots_page .dvc/tmp/plots_page.html
	dvc config --local plots.html_template tmp/plots_page.html
	@touch $@

demo: setup
	dvc repro
	@python -m json.tool reports/metrics.json
	@echo 'Pictures: reports/samples.png, denoising.png, masks.png, curves.png; yardsticks: reports/yardsticks.json'

test: setup lint
	pytest

lint: setup
	ruff check .
	ruff format --check .
	mypy

bench: setup
	python -m benchmarks.speed

report: setup
	dvc plots show

preset:
	@test -f presets/$(NAME).yaml || \
	  { echo 'There is no presets/$(NAME).yaml. Presets: $(basename $(notdir $(wildcard presets/*.yaml)))'; exit 1; }
	cp presets/$(NAME).yaml params.yaml

clean:
	rm -rf $(VENV) dvc_plots
