# Lifeboat. `make` alone explains. Caches (build products, tools, images, the test clusters) live outside the checkout.
export LIFEBOAT_CACHE ?= $(HOME)/.cache/lifeboat
export CARGO_TARGET_DIR ?= $(LIFEBOAT_CACHE)/target
export PATH := $(HOME)/.cargo/bin:$(PATH)
TARGET := x86_64-unknown-linux-musl

.DEFAULT_GOAL := help
.PHONY: help setup build test lint unit chart e2e images clusters clean-clusters demo bench bench-dump bench-failovers soak

help: ## explain the targets
	@echo 'Lifeboat keeps a PostgreSQL application recoverable. As root on Debian, with git, make, rustup and Go 1.26:'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Start with `make demo`. All caches are in $(LIFEBOAT_CACHE).'

demo: $(if $(GOLD_CONTEXT),,build) ## two clusters, a database, a real failover, shown step by step (GOLD_CONTEXT, GOLDDR_CONTEXT: on yours)
	$(if $(GOLD_CONTEXT),,images/build &&) tests/demo

test: ## install what is needed and run everything: lint, unit, chart, two real clusters
	tests/run

build: setup ## build the static binary
	cargo build --locked --release --target $(TARGET)

lint: setup ## rustfmt, clippy, shellcheck, licences and duplicates of dependencies
	tests/lint

unit: setup ## unit tests, and the binary against real servers on loopback
	cargo test --locked --lib --bins && cargo test --locked --test servers --test loopback

chart: setup ## the chart: lint, schema, unit tests
	helm/check

images: build ## build both images; with REGISTRY (and PUSH=1) by docker, podman or buildah, for clusters of your own
	images/build $(if $(PUSH),--push)

clusters: setup ## start the two test clusters
	tests/clusters/up && images/build --variant all && tests/clusters/load-image

e2e: $(if $(GOLD_CONTEXT),,images clusters) ## the suite on two real clusters; what can be of it on yours (GOLD_CONTEXT, GOLDDR_CONTEXT)
	cargo test --locked --features kill-points --test e2e -- --test-threads=1 --nocapture $(if $(GOLD_CONTEXT),chart::)

clean-clusters: ## end the test clusters and remove their data
	tests/clusters/down
	for pair in $${LIFEBOAT_MORE_PAIRS:-8 9}; do LIFEBOAT_PAIR=$$pair tests/clusters/down || exit; done

bench: images ## measure ours and the peers' in one run (some minutes), then failovers
	benches/run && benches/failovers

bench-dump: build ## dump and restore beside what people use in their place, into benches/dump.md
	benches/dump

bench-failovers: images ## RUNS=10 failovers each by link and by power, CronJob and Deployment (2 hours), into benches/failovers.md
	benches/failovers

soak: images clusters ## long random runs on the two test clusters, into benches/soak.md
	tests/soak

setup: ## install Debian packages, the Rust toolchain and the pinned Go tools
	@tests/setup
