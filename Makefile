PYTHON ?= .venv/bin/python
UV = .venv/bin/uv
# As with pip, the certificate of a package mirror counts where the system trusts it.
export UV_SYSTEM_CERTS = 1
# The tests start hundreds of processes, which would compile everything anew where Python is told to write no bytecode.
export PYTHONDONTWRITEBYTECODE =

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/'

# With PYTHON=python, everything runs in the environment that is active, and nothing is set up.
setup: $(if $(filter .venv/%,$(PYTHON)),.venv/ready) ## an environment of its own in .venv, with the locked versions
.venv/ready: requirements.txt pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: python3 must be 3.11 or newer")'
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(UV) pip install --quiet --compile-bytecode --python .venv/bin/python --requirements requirements.txt
	$(UV) pip install --quiet --no-deps --python .venv/bin/python --editable .
	touch .venv/ready

demo: setup ## transfer ImageNet weights to another architecture and train both; under 3 minutes on two cores
	$(PYTHON) run.py experiment=demo

test: setup lint ## lint and tests, those of the generated files among them
	$(PYTHON) -m pytest $(beside)

check: setup lint ## lint and the quick tests that train nothing, before every commit: under a minute on two idle cores
	$(PYTHON) -m pytest $(beside) -m "not training and not slow"

lowest: setup ## the tests of the library with the lowest versions that pyproject.toml allows, in build/lowest
	$(UV) venv --quiet --clear --python .venv/bin/python build/lowest
	$(UV) pip install --quiet --python build/lowest/bin/python --resolution lowest-direct --editable '.[experiments,dev]'
	build/lowest/bin/python -m pytest tests/dpiat -m "not training"

# The tests on all cores. A core that has nothing left takes tests from another.
beside = --numprocesses auto --dist worksteal

lint: setup ## style, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

tables: setup ## rebuild results/tables and the generated parts of the READMEs from the records
	$(PYTHON) -m experiments.tables

figures: setup ## rebuild results/figures from the records, and the drawings of docs/
	$(PYTHON) -m experiments.figures
	$(PYTHON) scripts/draw_docs.py

docs: setup ## build the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(UV) run --quiet --isolated --no-project --python .venv/bin/python --with-requirements docs/requirements.txt \
		mkdocs build --strict --quiet

notebooks: setup ## run the notebooks and keep what they show
	cd notebooks && PYTHONPATH=.. PYTHONWARNINGS=ignore:IProgress $(if $(filter .venv/%,$(PYTHON)),../$(PYTHON),$(PYTHON)) -m jupyter execute --inplace *.ipynb

bench: setup ## time the matching and the transfer, and training steps, against plain ways to do the same
	$(PYTHON) scripts/bench_matching.py
	$(PYTHON) scripts/bench_training.py --models eff_b0 --sizes 32 --together 2

lock: setup ## renew requirements.txt and docs/requirements.txt from their .in files
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --no-emit-package dpiat --no-annotate \
		--custom-compile-command "make lock" requirements.in --output-file requirements.txt
	cd docs && ../$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" requirements.in --output-file requirements.txt

.PHONY: help setup demo test check lowest lint tables figures docs notebooks bench lock
