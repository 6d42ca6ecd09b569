# make demo: the main job, offline, on the embedded local Hub.   make test: lint, types and every test.
# make quick: lint, types and the tests that take under a minute.   make test-one T=tests/gh: some tests, by path or T="… -k words".
# All do all their own set-up in .venv; PYTHON names another interpreter (3.11 or newer).
# TORCH_INDEX: one more index to look for torch in, as PyTorch's own for builds without CUDA (docs/install.md).
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= auto
ARGS ?=
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

# Together under a minute on two cores: the house and its contracts, and the tests that neither merge nor start a command.
QUICK := tests/house tests/workflows/test_docs.py tests/workflows/test_workflows.py tests/workflows/test_habits.py \
	tests/metadata tests/adapters/test_methods.py tests/adapters/test_lora.py tests/card/test_cards.py tests/gh

.PHONY: demo test pytest quick test-one lint lint-actions image-test bench clean
demo: $(VENV)/ready
	$(BIN)/adapter-merge demo

test: lint pytest

pytest: $(VENV)/ready-test
	$(PYTEST) -n $(WORKERS) --dist worksteal $(ARGS)

quick: lint
	$(PYTEST) --quiet -n $(WORKERS) --dist worksteal $(QUICK)

test-one: $(VENV)/ready-test
	$(PYTEST) $(or $(T),$(error T=… says which tests))

lint: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Workflows, examples and docs: their linters, and what holds them to the code.
lint-actions: $(VENV)/ready-test
	$(PYTEST) tests/workflows

# Builds the image and runs the action in it, as a runner would: minutes, as root, with podman.
image-test: $(VENV)/ready-test
	ADAPTER_MERGE_IMAGE_TEST=1 $(BIN)/python -m pytest tests/image

bench: $(VENV)/ready-test
	$(BIN)/python bench/merge.py

# torch first and alone: nothing else comes from its index, and any range would let pip take another build of it.
$(VENV)/ready: pyproject.toml constraints.txt bot/numerics/_exact.c bot/numerics/_exact_loop.h \
		bot/checks/elementwise/_rederive.c bot/checks/elementwise/_rederive_loop.h bot/checks/elementwise/_at_random.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
