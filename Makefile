# What to do with a fresh clone. `make demo` and `make test` need Rust and a C++ compiler; the rest
# is installed by `make setup`, which they call.

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/shardhost

# Compiled code is kept outside the clone, so that a second clone does not compile RocksDB again.
export CARGO_TARGET_DIR ?= $(CACHE)/target
export CCACHE_DIR ?= $(CACHE)/ccache
export CCACHE_NOHASHDIR = 1
export CCACHE_MAXSIZE ?= 2G
# Looked up when a recipe runs, because `setup` may just have installed it.
CCACHED = $(if $(shell command -v ccache),ccache )
export CC = $(CCACHED)cc
export CXX = $(CCACHED)c++

SHARDHOST = cargo run --release --package shardhost-cli --
BENCH = cargo run --release --package shardhost-bench --bin shardhost-bench --

# Arguments for `make demo` and `make bench`, for example: make demo ARGS=--keep
ARGS ?=

# Seconds of mutations per test, and where they begin.
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= $(shell date +%s)

# What goes wrong in `make chaos`, for how long; tests/faults/chaos says more.
CHAOS_SECONDS ?= 120
CHAOS_SEED ?= $(shell od -An -N2 -tu2 /dev/urandom | tr -d ' ')
CHAOS_NODES ?= 3
CHAOS_FAULTS ?=

.PHONY: help setup build test fuzz chaos demo bench bench-smoke lint docs package msrv

help:
	@echo "make demo         hosts that are killed, join, are lost and replaced, are restarted under a real load; verified"
	@echo "make test         all tests"
	@echo "make fuzz         bytes from outside, mutated for a minute per kind; about four minutes"
	@echo "make chaos        hosts under load while disks, clocks and links fail, from a seed; CHAOS_SECONDS=600"
	@echo "make build        the binary, in $(CARGO_TARGET_DIR)/release/shardhost"
	@echo "make bench        all benchmarks; takes long"
	@echo "make bench-smoke  every benchmark once, in a few seconds each"
	@echo "make lint         format and clippy, warnings are errors"
	@echo "make docs         the library's documentation, warnings are errors"
	@echo "make package      the crates as they would be published"
	@echo "make msrv         compile with the oldest Rust that Cargo.toml promises"
	@echo "make setup        install what the build needs"

setup:
	@.ci/setup

# Says how long the compiler will be busy, and how far it is with RocksDB.
COMPILE = .ci/compile

build: setup
	@$(COMPILE) cargo build --release --package shardhost-cli

# Several at a time of the tests that mostly wait.
WAITING = --config 'target."cfg(unix)".runner = "$(CURDIR)/.ci/waiting"'

test: setup
	@$(COMPILE) cargo test --workspace --no-fail-fast --no-run
	cargo test $(WAITING) --workspace --no-fail-fast

fuzz: setup
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) cargo test --workspace --test fuzz -- --test-threads=2

chaos: export CHAOS_SECONDS := $(CHAOS_SECONDS)
chaos: export CHAOS_SEED := $(CHAOS_SEED)
chaos: export CHAOS_NODES := $(CHAOS_NODES)
chaos: export CHAOS_FAULTS := $(CHAOS_FAULTS)
chaos: setup
	cargo test --workspace --test faults chaos_loses_nothing -- --nocapture

demo: build
	$(SHARDHOST) demo $(ARGS)

bench: setup
	cargo bench --workspace --bench '*'
	$(BENCH) write $(ARGS)

bench-smoke: setup
	cargo bench --workspace --bench '*' -- --test
	$(BENCH) write --seconds 2 --groups 8 --outstanding 64
	$(BENCH) read --seconds 1 --kinds lease
	$(BENCH) stall --seconds 1 --groups 1 --transfers 3 --changes 1 --replacements 1
	$(BENCH) restart --groups 300
	$(BENCH) bootstrap --groups 300 --by-hand 2
	$(BENCH) drain --groups 300
	$(BENCH) drain --groups 300 --load 0.3
	$(BENCH) kill --groups 300
	$(BENCH) balance --groups 300
	$(BENCH) snapshot --size 8MiB --rate 0 --seconds 1
	$(BENCH) replace --groups 60 --rate 200 --calm 1 --replace-after 2
	$(BENCH) join --groups 60 --rate 200 --calm 1 --replace-after 2
	$(BENCH) handshakes --seconds 1 --rate 500

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	.ci/dependencies
	.ci/words

docs: export RUSTDOCFLAGS = -D warnings
docs: setup
	cargo doc --workspace --no-deps --all-features

# The index is asked only for what is not known of it yet.
PACKAGE = cargo package --workspace --no-verify --allow-dirty --quiet
package: setup
	$(PACKAGE) --offline 2>/dev/null || $(PACKAGE)

# MSRV=changed: only if the dependencies have changed since it last passed.
msrv: setup
	.ci/msrv $(MSRV)
