# Two commands do it: `make run` trains CartPole, `make test` checks everything.
# Both make .venv when it is missing and may be repeated; `make help` lists the rest.
#
#   PYTHON=python3.12     the interpreter for a new .venv (3.11 to 3.13)
#   TORCH_INDEX_URL=URL   where PyTorch's wheels come from, e.g. its CPU index
#   ARGS="..."            more arguments for `make run` and `make bench`

PYTHON ?= python3
TORCH_INDEX_URL ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
ROOMS := actors common learner replay_server
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint format types audit prebuild faults mutations studies bench bench-venvs dist links clean-links clean \
	token wheels compose-test hosts-test check-venv say-download

help:
	@echo "make run          install if needed, train CartPole through Ray, leave a video and a curve"
	@echo "make test         install if needed, then lint, types and the test suite (what CI runs)"
	@echo "make test-all     the test suite with the slow learning runs"
	@echo "make lint         ruff check and format check      make format   let ruff format"
	@echo "make types        mypy --strict                    make dist     build wheel and sdist"
	@echo "make audit        known vulnerabilities in the pinned packages"
	@echo "make prebuild     compile the presets' learner blocks ahead (a minute; later runs learn faster)"
	@echo "make bench        time to solved beside other libraries, each in its own environment"
	@echo "make faults       inject faults into real runs and write docs/reliability.md (fifteen minutes)"
	@echo "make token        the secret that the hosts of a cluster share, in .secrets/ray_token"
	@echo "make compose-test docker-compose.yml tried for real (needs a container engine)"
	@echo "make hosts-test   several hosts as network namespaces of this one (needs root)"
	@echo "make mutations    put known mistakes back one at a time, see their tests fail: docs/correctness.md"
	@echo "make studies      both exercises with ten seeds of each arm, into docs/studies (half an hour)"
	@echo "make links        restore the four links in src/qfleet (clean-links removes them)"
	@echo "make clean        remove caches and builds; .venv and runs stay"
	@echo "Variables: PYTHON=python3.12  TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu  ARGS=..."

run: $(VENV)/.installed-run | links
	$(BIN)/qfleet train $(ARGS)

# Two workers; one of them alone has the tests that start Ray (tests/conftest.py).
test: lint types
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadscope --no-loadscope-reorder

test-all: $(VENV)/.installed-dev | links
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev | links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev | links
	$(BIN)/mypy

dist: $(VENV)/.installed-dev
	$(BIN)/python -m build --no-isolation

# Known vulnerabilities in the tested set; asks the Python package index.
audit: $(VENV)/.installed-run
	$(BIN)/python -m pip install --quiet "pip-audit>=2.7"
	$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip

prebuild: $(VENV)/.installed-run | links
	$(BIN)/python -m qfleet.prebuild cartpole tutorial-state

# A quarter of an hour on an idle machine.
mutations: $(VENV)/.installed-dev | links
	$(BIN)/python tests/mutations.py

# Goes on where it was interrupted; the second command of each only writes the page in Japanese. The
# arms' three packages come first: an eager run takes two minutes, one with a package a quarter.
studies: $(VENV)/.installed-run | links
	mkdir -p docs/studies
	for flags in "" "--learner.target_network false" "--network.dueling true"; do \
	  $(BIN)/qfleet train tutorial-state --runtime local --run.max_episodes 1 --learner.compile required \
	    $$flags || echo "This arm stays eager."; done
	for name in target-network dueling-per; do \
	  $(BIN)/qfleet study $$name --seeds 10 && cp runs/study-$$name/report.html docs/studies/$$name.html && \
	  $(BIN)/qfleet study $$name --seeds 10 --language ja && \
	  cp runs/study-$$name/report.html docs/studies/$$name.ja.html || exit 1; done

bench: $(VENV)/.installed-run bench-venvs | links
	$(BIN)/python benchmarks/solve_time.py $(ARGS)

faults: $(VENV)/.installed-dev | links
	$(BIN)/python benchmarks/faults.py $(ARGS)

bench-venvs:
	PYTHON="$(PYTHON)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" sh benchmarks/peers/make_venvs.sh

# ---- clusters (docs/cluster.md) ------------------------------------------------------------------

token:
	@sh deploy/token.sh

# For an image that is built where the package index is out of reach: the image's Python is 3.11.
wheels: $(VENV)/.installed-run
	$(BIN)/python deploy/requirements.py | $(BIN)/python -m pip download \
	  --disable-pip-version-check --python-version 3.11 --only-binary :all: -c constraints.txt \
	  $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --dest wheels -r /dev/stdin

compose-test: $(VENV)/.installed-run
	$(BIN)/python tests/deploy/compose_trial.py

hosts-test: $(VENV)/.installed-dev | links
	$(BIN)/python -m pytest -n 0 -s tests/deploy/test_hosts.py tests/deploy/test_hosts_live.py

# ---- installation -------------------------------------------------------------------------------

# Stamps of an environment whose interpreter is gone (a system upgrade) must not count.
ifneq ($(shell $(BIN)/python -c 'print(1)' 2>/dev/null),1)
$(shell rm -f $(VENV)/.installed-run $(VENV)/.installed-dev)
endif

# A stamp is newer than what decides the installation, so an unchanged tree installs nothing.
$(VENV)/.installed-run: pyproject.toml constraints.txt | links check-venv say-download
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | links check-venv say-download
	$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.installed-run

# An environment whose pip does not answer is what an interrupted `venv` leaves: it is made anew.
check-venv:
	@if $(BIN)/python -c 'import pip' >/dev/null 2>&1; then \
	  if [ "$(origin PYTHON)" != file ] && [ "$$($(BIN)/python --version)" != "$$("$(PYTHON)" --version 2>/dev/null)" ]; then \
	    echo "Note: $(VENV) has $$($(BIN)/python --version). To use $(PYTHON): rm -r $(VENV), then repeat."; \
	  fi; exit 0; fi; \
	if ! command -v "$(PYTHON)" >/dev/null 2>&1; then \
	  echo "qfleet needs Python 3.11 to 3.13, and '$(PYTHON)' was not found." >&2; \
	  echo "Install one (Debian, Ubuntu: sudo apt-get install python3 python3-venv)," >&2; \
	  echo "or name yours: make PYTHON=/path/to/python3.12 run" >&2; exit 1; fi; \
	if ! "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then \
	  echo "qfleet needs Python 3.11 to 3.13, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." >&2; \
	  for other in python3.13 python3.12 python3.11; do \
	    if $$other -c '' >/dev/null 2>&1; then \
	      echo "This machine has $$other: make PYTHON=$$other run" >&2; exit 1; fi; done; \
	  echo "Install one of them and name it: make PYTHON=python3.12 run" >&2; exit 1; fi; \
	if ! "$(PYTHON)" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
	  version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "'$(PYTHON)' cannot make virtual environments: its venv module is missing." >&2; \
	  echo "Debian, Ubuntu: sudo apt-get install python$$version-venv, then repeat the command." >&2; \
	  exit 1; fi; \
	echo "Making $(VENV) with $$("$(PYTHON)" --version 2>&1)"; \
	"$(PYTHON)" -m venv --clear $(VENV)

# PyTorch's default Linux wheels bring CUDA along: without an NVIDIA driver that is for nothing.
say-download: | check-venv
	@if $(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' \
	    >/dev/null 2>&1; then exit 0; fi; \
	if [ -n "$(TORCH_INDEX_URL)" ]; then \
	  echo "PyTorch's wheels are looked for at $(TORCH_INDEX_URL) too."; exit 0; fi; \
	if [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] \
	    && ! command -v nvidia-smi >/dev/null 2>&1; then \
	  echo "No NVIDIA driver was found. PyTorch's default Linux wheels include CUDA: a download of"; \
	  echo "several gigabytes that this machine cannot use. The CPU wheels are about 0.2 GB; for them"; \
	  echo "press Ctrl-C and repeat the command with"; \
	  echo "  TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu"; \
	  echo "(A pip that is set up to find CPU wheels takes those anyway.)"; \
	fi; \
	echo "Installing: PyTorch, and a few hundred megabytes of everything else (Ray, OpenCV, ...)."

# Git without link support checks a link out as a small text file: that is replaced as well.
links:
	@for room in $(ROOMS); do \
	  if [ ! -d src/qfleet/$$room ]; then \
	    rm -f src/qfleet/$$room; ln -s ../../$$room src/qfleet/$$room; \
	    echo "Restored the link src/qfleet/$$room"; fi; done

clean-links:
	@for room in $(ROOMS); do if [ -L src/qfleet/$$room ]; then rm src/qfleet/$$room; fi; done

clean:
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(ROOMS) src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
