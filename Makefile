# make compare    answer the question on this machine: installs what is missing, trains, reports
# make test       run the tests
# make            list the commands

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PINNED := pyproject.toml constraints.txt
PYTHON ?=
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup compare test lint format clean
.DELETE_ON_ERROR:

help:
	@echo "make compare   compare memory arms with dense transformers at equal compute (ARGS=\"--quick\" for a first look)"
	@echo "make test      run the tests                                              (ARGS=\"tests/mann -x\")"
	@echo "make lint      ruff, import-linter and pyright"
	@echo "make format    let ruff rewrite the files"
	@echo "make setup     install the pinned requirements into $(VENV) (the commands above do so when needed)"
	@echo "make clean     remove caches and $(VENV); runs and results stay"

setup: $(VENV)/.installed

compare: $(VENV)/.installed
	@$(BIN)/mnemograph compare $(ARGS)

# One torch thread in each worker: the workers are the parallelism.
test: $(VENV)/.installed-test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format -q .

clean:
	rm -rf $(VENV) .hypothesis .import_linter_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python that is new enough and can make environments; PYTHON=... overrides the search.
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "[1/3] $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "No Python >= 3.11 with the venv module was found (tried: $(CANDIDATES))." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3.11-venv), or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; \
	exit 1

# pip leaves out compiling all of site-packages (12,000 files); the imports at the end compile the part that is
# used, and are the proof that the installation works. Two processes, in orders that have little to do twice.
$(VENV)/.installed: $(PINNED) | $(BIN)/python
	@echo "[2/3] pinned requirements (mostly torch; about a minute, more where it has to be downloaded)"
	@$(PIP) install -q -c constraints.txt --upgrade pip 2>$(VENV)/install.err || { cat $(VENV)/install.err >&2; exit 1; }
	@$(call install,.)
	@echo "[3/3] first import"
	@export PYTHONDONTWRITEBYTECODE=; \
	$(BIN)/python -W ignore -c 'import matplotlib.pyplot, wandb, lightning' & other=$$!; \
	$(BIN)/python -W ignore -c 'import torch, faiss, torch_geometric'; status=$$?; \
	wait $$other && exit $$status
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "      what the tests need"
	@$(call install,.[test])
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@echo "      linters"
	@$(call install,.[dev])
	@touch $@

# pip's own output is long, and with -q a long download looks like a hang: name the large files as they come and
# keep the rest in a log. The exit status goes through a file: a pipe in plain sh reports its last command only.
define install
rm -f $(VENV)/install.log; \
{ $(PIP) install --no-compile --progress-bar off -c constraints.txt -e '$(1)' 2>$(VENV)/install.err; \
  echo $$? >$(VENV)/install.status; } | while IFS= read -r line; do \
    printf '%s\n' "$$line" >>$(VENV)/install.log; \
    case "$$line" in \
      *loading*[0-9][0-9].[0-9]" MB)"* | *loading*" GB)"*) printf '      %s\n' "$${line#"$${line%%[! ]*}"}" ;; \
      "Installing collected"*) echo "      unpacking" ;; \
    esac; \
  done; \
if [ "$$(cat $(VENV)/install.status)" != 0 ]; then \
  cat $(VENV)/install.err >&2; \
  echo "The installation failed; what pip did is in $(VENV)/install.log. To try again: make $(or $(MAKECMDGOALS),setup)" >&2; \
  exit 1; \
fi
endef
