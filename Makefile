# maskdm: make demo (set-up and the main job), make test (set-up and all checks)
# PYTHON is looked up before .venv comes first on the path.
override PYTHON := $(shell command -v $(or $(PYTHON),python3))
VENV := .venv
PAGE := .dvc/tmp/plots_page.html
PRESETS := $(basename $(notdir $(wildcard presets/*.yaml)))
PIP := python -m pip --quiet --disable-pip-version-check
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DELETE_ON_ERROR:
.PHONY: help setup demo test lint audit bench gpu torture evidence evidence-gpu report docs preset clean

help:
	@echo 'make demo            set up and run the pipeline of params.yaml (11 to 25 minutes on 2 cores)'
	@echo 'make test            set up, lint, check types, run all tests'
	@echo 'make setup           only the environment: .venv from requirements.lock (TORCH=cpu: without CUDA, much smaller)'
	@echo 'make audit           look the packages of requirements.lock up among known vulnerabilities'
	@echo 'make preset NAME=…   write params.yaml from a preset ($(PRESETS))'
	@echo 'make bench           measure speed against the limits of this machine, into reports/bench.json (11 minutes)'
	@echo 'make gpu             exactness and speed on the GPU that is there, into reports/gpu/ (9 minutes; goes on where it was)'
	@echo 'make torture         kill training 300 times at random moments, into reports/torture.json (40 minutes)'
	@echo 'make evidence        is masking at half the compute as good? 15 minutes; on your images: make evidence IMAGES=folder'
	@echo 'make evidence-gpu    the deciding experiments on a GPU, eight runs at a time (9 minutes; goes on where it was)'
	@echo 'make report          evidence and runs as one page, reports/index.html (REVS="main my-exp")'
	@echo 'make docs            compute the tables of README.md and docs/ anew, and the pictures of the evidence'
	@echo 'make clean           remove the environment'

setup: $(VENV)/.complete $(PAGE)
	@test -z '$(TORCH)' || grep -qx '$(TORCH)' $(VENV)/.packages || \
	  echo '$(VENV) was installed without TORCH=$(TORCH): make clean, then make setup TORCH=$(TORCH) installs it anew.'

# Two marks, each set last, so that an install that was cut short is begun again. The first holds
# the build of torch that was asked for.
$(VENV)/.packages: requirements.lock tools/install.py
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'maskdm needs Python 3.11 or newer, which $(or $(PYTHON),the one asked for) is not.' \
	       'Name one: make $(MAKECMDGOALS) PYTHON=python3.12'; exit 1; }
	@echo 'Installing the packages of requirements.lock into $(VENV): $(if $(TORCH),2.4,6.4) GB, a minute or as long as the download takes.'
	$(PYTHON) -m venv --clear $(VENV)
	python -m tools.install $(if $(TORCH),--torch $(TORCH))
	@echo '$(TORCH)' >$@

$(VENV)/.complete: $(VENV)/.packages pyproject.toml
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(PAGE): $(VENV)/.complete tools/plots_page.py
	@# An archive of the source has no history: DVC must be told, and experiments need one.
	test -e .git || dvc config --local core.no_scm true
	dvc config --local plots.html_template $(PAGE:.dvc/%=%)
	python -m tools.plots_page $(PAGE)

demo: setup
	python -m tools.mend_lock
	dvc repro
	@python -m json.tool reports/metrics.json
	@echo 'Pictures: reports/*.png, all on one page by make report; yardsticks: reports/yardsticks.json'

test: lint
	pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 10

lint: setup
	ruff check .
	ruff format --check .
	mypy

audit: setup
	python -m tools.audit

bench: setup
	python -m benchmarks.speed.bench

gpu: setup
	python -m benchmarks.gpu.kit

torture: setup
	python -m benchmarks.robustness.torture

evidence: setup
	python -m benchmarks.evidence.matrix reduced $(if $(IMAGES),--own '$(IMAGES)')
	python -m benchmarks.evidence.decided reduced
	python -m tools.report.page

evidence-gpu: setup
	test -d data/glyphs || python -m benchmarks.evidence.glyphs data/glyphs
	python -m benchmarks.evidence.decision --jobs 8 --minutes 6 --large; ended=$$?; \
	  python -m benchmarks.evidence.decided && exit $$ended

report: setup
	python -m tools.report.page $(REVS)

docs: setup
	python -m benchmarks.evidence.summary
	python -m benchmarks.evidence.decided
	python -m tools.tables.pages
	python -m tools.report.figure
	python -m tools.report.regimes
	python -m tools.report.saved

preset: setup
	python -m tools.preset '$(NAME)'

clean:
	rm -rf $(VENV) dvc_plots
