# The project's commands; `make` alone lists them.
PYTHON ?= python3
RUN := .venv/bin/python

# Run tools/setup_env.py with the first Python that is new enough: `python3`
# is older on some machines that have a newer one under its own name.
env = for py in $(PYTHON) python3.13 python3.12 python3.11; do \
	  $$py -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>&- && \
	  exec $$py tools/setup_env.py $(1); \
	done; \
	echo 'error: Python 3.11 or newer is needed (set PYTHON=...)' >&2; exit 1

.PHONY: help demo test bench lint format env clean
.NOTPARALLEL:

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo:  ## show what the plug-ins do
	@( $(call env,mmseg) )
	@$(RUN) tools/demo.py

test:  ## run all tests (those for a GPU skip themselves without one)
	@( $(call env,tests) )
	@$(RUN) -m pytest

bench:  ## measure speed and memory (ARGS='--json FILE' writes the figures)
	@( $(call env,tests) )
	@$(RUN) tools/benchmark.py $(ARGS)

lint:  ## check style and formatting
	@( $(call env,lint) )
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

format:  ## fix style and formatting in place
	@( $(call env,lint) )
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

env:  ## only build the environment of `make test`
	@( $(call env,tests) )

clean:  ## remove .venv (the compiled mmcv stays in the user's cache)
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
