# make quickstart   the whole thing in small: three trainings and one page, six to sixteen minutes on two cores
# make test         lint, types and tests
# make docs         the documentation as a site, in site/
# make PYTHON=python3.12 ...   with another interpreter (3.11 or newer)

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: quickstart test lint docs clean
.DEFAULT_GOAL := test

# Rebuilt only when the requirements change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "unetdiff needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)." \
			"Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP)
	$(BIN)/unetdiff quickstart

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy unetdiff

# Two workers with a thread each: the tests are many and small. Nothing is fetched from a hub.
test: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -q -n $${PYTEST_WORKERS:-2} --dist loadgroup --durations=25

# Strict: a broken link or a faulty docstring ends the build. The tests build it, too.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html; with search: $(BIN)/python -m http.server -d site"

clean:
	rm -rf site .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
