# Affinery: everything from a clean clone, with Python 3.11 or newer and make.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

# Set in some containers; every process would then compile every import anew.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH
unexport PYTHONHOME

bin := .venv/bin

# Where the demo works, as in `make demo WORKSPACE=/tmp/try`, and which Python .venv is made with.
WORKSPACE ?=
PYTHON ?=
# What pytest is told, as in `make test PYTEST="-m 'not slow' -x"`.
PYTEST ?=

.PHONY: help
help: ## List what can be made
	@echo "Affinery: one frozen diffusion backbone that keeps learning."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo WORKSPACE=folder    work there instead of ./affinery-workspace"
	@echo "  make PYTHON=python3.12 …      make .venv with this Python"

.PHONY: demo
demo: venv ## Learn three real datasets on one frozen backbone and draw from all of them
	@$(bin)/affinery demo $(if $(WORKSPACE),--workspace "$(WORKSPACE)")

.PHONY: test
test: check ## Run the checks, then every test
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

.PHONY: soak
soak: venv ## Hundreds of small jobs while processes are killed at random (half an hour; prints its seed)
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -n0 -m soak -s tests/soak $(PYTEST)

.PHONY: team
team: venv ## The team set-up of docker-compose.yml without a container engine (Linux, root; until Ctrl-C)
	@$(bin)/python -m scripts.compose_by_hand up --folder "$(or $(FOLDER),/var/tmp/affinery-team)"

# All six run even if the first finds something: one round shows everything there is to mend.
.PHONY: check
check: venv ## Lint, format, types, import directions, dead code, documentation
	@failed= ; \
	try() { name=$$1 ; shift ; if out=$$("$$@" 2>&1) ; then echo "  ok    $$name" ; \
		else printf '%s\n  FAIL  %s\n' "$$out" "$$name" ; failed="$$failed $$name" ; fi ; } ; \
	try ruff          $(bin)/ruff check . ; \
	try format        $(bin)/ruff format --check --output-format concise . ; \
	try mypy          $(bin)/mypy ; \
	try import-linter $(bin)/lint-imports --no-logo ; \
	try vulture       $(bin)/vulture ; \
	try docs          $(bin)/python -m scripts.build_docs ; \
	if [ -n "$$failed" ] ; then echo "make check failed:$$failed. Layout and imports are mended by: make fmt" ; exit 1 ; fi

.PHONY: docs
docs: venv ## Build the documentation as pages, in build/docs/site
	@$(bin)/python -m scripts.build_docs

.PHONY: fmt
fmt: venv ## Format the code and mend what the linter can
	@$(bin)/ruff check --quiet --fix-only .
	@$(bin)/ruff format .

.PHONY: venv
venv: ## Make .venv from requirements.lock (demo, test and check do this themselves)
	@PYTHON="$(PYTHON)" scripts/make-venv.sh

.PHONY: lock
lock: venv ## Resolve requirements.lock anew from pyproject.toml
	@$(bin)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-emit-index-url --no-annotate --upgrade --quiet -o requirements.lock
	@! grep -nE '://|find.links' requirements.lock || { echo "requirements.lock names a host; that is not portable." ; exit 1 ; }
	@$(MAKE) --no-print-directory venv

.PHONY: team-env
team-env: ## Write .env with fresh secrets for docker-compose.yml (keeps one that is there)
	@scripts/make-team-env.sh

.PHONY: clean
clean: ## Remove .venv, caches and builds; workspaces are kept
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
