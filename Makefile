# What a user types. Every target does what of `setup` is missing.
#
#   make setup      libtorch in ./.venv, then the programs in ./target/release
#   make relabel    PAIRS= SCORERS= LABELS= DEVICE= ARGS=   score pairs, write votes and consensus
#   make train      MODEL= PAIRS= LABELS= RUN= DEVICE= ARGS=   align a diffusion model with the labels
#   make evaluate   MODELS= PROMPTS= EVAL= SCORERS= LABELS= DEVICE= ARGS=   draw, judge, compare, report
#   make experiments   the paper's design in the miniature world: docs/experiments.md (an hour or two)
#   make test       all tests, the notebook and the report in a browser included
#   make lint       formatting, lints, documentation, generated pages
#   make parity     the Python libraries and ours on the same random weights, full published size
#   make bench      speed and memory beside the Python way
#   make docs       the generated reference pages
#   make clean      remove what was built; labels, runs and evaluations stay

PAIRS   ?= data/sample
SCORERS ?= data/mini/scorers.toml
LABELS  ?= data/labels.parquet
MODEL   ?= data/mini/sd
RECIPE  ?= mini
RUN     ?= runs/mini
MODELS  ?= base=$(MODEL) balanced=$(RUN)/pipeline
PROMPTS ?= data/mini/validation.tsv
EVAL    ?= eval
# How the miniature pipeline draws; ARGS= of other models.
DRAW    ?= --steps 25 --guidance 2 --scheduler dpmpp-2m
DEVICE  ?= auto
ARGS    ?=

VENV    := $(CURDIR)/.venv
TORCH   := 2.11.0

# A user's own libtorch wins; otherwise the one of the project's virtual environment is used, and
# nothing but that environment is needed.
ifndef LIBTORCH
export LIBTORCH_USE_PYTORCH := 1
export VIRTUAL_ENV := $(VENV)
export PATH := $(VENV)/bin:$(PATH)
TORCH_STAMP := $(VENV)/.torch-$(TORCH)
endif

.DEFAULT_GOAL := help
.PHONY: help setup build relabel train evaluate experiments test lint parity bench docs clean

help:
	@sed -n '3,13s/^#   //p' Makefile

setup: build
	@echo "ready: make relabel"

$(VENV)/.torch-$(TORCH): scripts/setup.sh
	scripts/setup.sh $(VENV) $(TORCH)

build: $(TORCH_STAMP)
	cargo build --release --locked --bins

relabel: build
	target/release/relabel score --pairs $(PAIRS) --scorers $(SCORERS) --out $(LABELS) --device $(DEVICE) $(ARGS)

# An earlier run of RUN is gone on with; another one is refused, and ARGS=--fresh starts over.
train: build
	target/release/train run --recipe $(RECIPE) --model $(MODEL) --pairs $(PAIRS) --labels $(LABELS) --out $(RUN) --device $(DEVICE) $(ARGS)

# An earlier evaluation in EVAL is gone on with: only what is new is drawn and judged.
evaluate: build
	target/release/evaluate run $(addprefix --model ,$(MODELS)) --prompts $(PROMPTS) --scorers $(SCORERS) $(DRAW) --labels $(LABELS) --out $(EVAL) --device $(DEVICE) $(ARGS)

experiments: build
	scripts/experiments/run.sh

CHECKS := notebooks/requirements.txt scripts/checks/requirements.txt
$(VENV)/.checks: $(CHECKS) $(TORCH_STAMP)
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(addprefix --requirement ,$(CHECKS))
	touch $@

# The last lines are the three stages in small, and their output opened as a user would.
test: build $(VENV)/.checks
	cargo test --release --locked --workspace
	target/release/relabel score --quiet --pairs data/sample --scorers data/mini/scorers.toml --out out/test/labels.parquet --fresh
	$(VENV)/bin/python scripts/checks/duckdb_recheck.py out/test/labels.parquet
	LABELS=out/test/labels.parquet $(VENV)/bin/python scripts/checks/run_notebook.py
	target/release/train run --quiet --recipe mini --steps 8 --lr 1e-5 --model data/mini/sd --pairs data/sample --labels out/test/labels.parquet --out out/test/run --device cpu --fresh
	target/release/evaluate run --quiet --model base=data/mini/sd --model balanced=out/test/run/pipeline --prompts data/mini/validation.tsv,limit=24 --scorers data/mini/scorers.toml --seeds 2 --steps 10 --guidance 2 --scheduler dpmpp-2m --labels out/test/labels.parquet --out out/test/eval --device cpu --fresh
	$(VENV)/bin/python scripts/checks/report_in_browser.py out/test/eval/report.html

lint: build
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --release --locked --workspace --no-deps --document-private-items
	cargo run --quiet --release --locked -p balanceddpo-schemas -- docs --check

parity: build
	scripts/parity/run.sh

bench: build
	scripts/bench/run.sh

docs: build
	cargo run --quiet --release --locked -p balanceddpo-schemas -- docs

# Only what `make build`, `test`, `parity` and `bench` make again: labels take days, and are not ours to remove.
clean:
	rm -rf target out/test out/parity out/bench
