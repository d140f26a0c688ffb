PYTHON ?= python3
# One thread a process: more of them than cores wait for each other.
PYTEST_ARGS ?= -n 2 --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint board docs package

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## attack real defenses on the embedded base; writes results/demo/
	@IMMUNEBENCH_STORE="$${IMMUNEBENCH_STORE:-$(CURDIR)/.store}" $(BIN)/python -m immunebench.demo

test: lint ## lint, then run the tests (PYTEST_ARGS="-k store" picks some)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED) ## ruff, import-linter (no room imports from one above it) and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy
	@$(BIN)/mypy benchmarks examples mkdocs_hooks.py

board: $(INSTALLED) ## score every folder of results/: tables, plots and the site in leaderboard/site/
	@$(BIN)/immunebench board

docs: $(INSTALLED) ## build the documentation into .site/; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: .site/index.html"

package: $(INSTALLED) ## build wheel and sdist into dist/, and try the wheel in an empty folder
	@rm -rf dist
	@$(BIN)/python -m hatchling build
	@set -e; place="$$(mktemp -d)"; trap 'rm -rf "$$place"' EXIT; mkdir "$$place/empty"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$$place/package" dist/*.whl; \
	unset IMMUNEBENCH_ENTRIES; export PYTHONPATH="$$place/package" IMMUNEBENCH_STORE="$$place/store"; \
	cd "$$place/empty"; python="$(CURDIR)/$(BIN)/python"; \
	"$$python" -c 'import immunebench, sys; sys.exit(immunebench.__file__.find(sys.argv[1]) != 0)' "$$place/package"; \
	"$$python" -m immunebench list > list.txt; grep -q imma-lora list.txt; \
	"$$python" -m immunebench run mini-smoke --dry-run > plan.txt; grep -q style-solano plan.txt; \
	"$$python" -m immunebench reported > reported.txt; grep -q IMMA reported.txt; \
	"$$python" -m immunebench cite --release 2026.0-world1 --suite mini-lite > cite.txt; grep -q mini-lite cite.txt; \
	echo "the wheel lists its entries, plans mini-smoke and cites a release from an empty folder"

# The install is skipped until the lock or the project file changes. An existing .venv is updated, never replaced.
$(INSTALLED): requirements.txt pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: ImmuneBench needs Python 3.11 or newer, and '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>&1 || true). Name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
		set -e; \
		[ -x $(BIN)/python ] || uv venv --quiet --seed --python "$$(command -v $(PYTHON))" $(VENV); \
		echo "installing into $(VENV) with uv (about 6 GB, once)"; \
		uv pip install --quiet --python $(BIN)/python -r requirements.txt; \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
		set -e; \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
		echo "installing into $(VENV) with pip (about 6 GB, once; some minutes)"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi
	@touch $@
