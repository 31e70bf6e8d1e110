# `make` alone lists what can be made. Everything but `help` first checks the machine (tests/setup.sh).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
TRIPLE := $(shell uname -m)-linux
# The lab needs root, or a user namespace in which an ordinary user is root.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),unshare --user --map-root-user)
FUZZ_SECONDS ?= 30

.PHONY: help setup setup-services setup-bench setup-fuzz kubernetes build demo demo-kubernetes test fmt lint generate bench dist fuzz

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

setup: ## check (as root: install) what building and the lab need
	@tests/setup.sh build lab

setup-services: setup
	@tests/setup.sh services

# Kubernetes' programs, from the cache outside the checkout. Measured: 8 CPU minutes cold, 7 s when
# only the linking is to be done, nothing after that. KUBEBUILDER_ASSETS is honoured.
kubernetes: setup-services
	@tests/kubernetes/build.sh >/dev/null
	@tests/kubernetes/build.sh published >/dev/null

setup-bench: setup-services
	@tests/setup.sh bench

setup-fuzz: setup
	@tests/setup.sh fuzz

build: setup
	@if [ ! -x $(TARGET)/debug/horizon-demo ]; then \
	  echo "Building Horizon: about 5 minutes on 2 cores the first time, seconds after that."; fi
	@$(CARGO) build --locked --workspace --bins

demo: build ## see it work: controller, appliance, client and traffic in a lab on this machine
	@$(TARGET)/debug/horizon-demo

demo-kubernetes: build kubernetes ## the same in production: an API server, Postgres, Redis, two replicas, kubectl
	@$(TARGET)/debug/horizon-demo-kubernetes

fmt: setup ## format the sources
	@$(CARGO) fmt --all

lint: setup
	@echo "== format"; $(CARGO) fmt --all --check
	@echo "== lints";  $(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@# Only checked here, so libFuzzer itself need not be compiled.
	@echo "== fuzz targets"; CUSTOM_LIBFUZZER_PATH=/unused.a \
	  $(CARGO) check --quiet --manifest-path fuzz/Cargo.toml --target-dir $(TARGET)/fuzz/check

test: lint kubernetes ## format, lints, generated files, unit and end-to-end tests (25 minutes on 2 cores once the dependencies are built)
	@echo "== build";  $(CARGO) build --locked --workspace --all-targets
	@echo "== generated files"; CARGO_MANIFEST_DIR=$(abspath crds) $(TARGET)/debug/crdgen --check
	@echo "== tests";  HORIZON_PROGRAMS=$(abspath $(TARGET))/debug $(AS_ROOT) $(CARGO) test --locked --workspace --no-fail-fast

generate: setup ## write crds/yaml, docs/reference.md and the protobuf messages again
	@$(CARGO) run --locked -q -p horizon-crds --bin crdgen
	@HORIZON_REGENERATE=1 $(CARGO) test --locked -q -p horizon-wire --test generated

# BENCH names some of: start edits connect throughput idle store kubernetes security fleet.
bench: setup-bench kubernetes ## measure (BENCH="security store": only these); tables on the terminal, figures in target/bench
	@echo "Building with full optimisation: about 10 minutes on 2 cores the first time."
	@$(CARGO) build --locked --profile dist --workspace --bins --example store_bench
	@$(TARGET)/dist/horizon-bench --out $(TARGET)/bench $(BENCH)

dist: setup ## a tarball of release programs for a second host
	@$(CARGO) build --locked --profile dist --workspace --bins
	@name=horizon-$(VERSION)-$(TRIPLE); out=$(TARGET)/dist/tar/$$name; \
	rm -rf $$out; mkdir -p $$out/bin; \
	for program in horizon-controller horizon-appliance horizon; do \
	  install -m 0755 -s $(TARGET)/dist/$$program $$out/bin/; done; \
	cp -r README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md LICENSE docs examples manifests $$out/; \
	if [ -d images ]; then cp -r images $$out/; fi; \
	mkdir -p $$out/crds; cp -r crds/kustomization.yaml crds/yaml $$out/crds/; \
	tar -C $(TARGET)/dist/tar --owner=0 --group=0 -czf $(TARGET)/$$name.tar.gz $$name; \
	echo "$(TARGET)/$$name.tar.gz"

fuzz: setup-fuzz ## run each fuzz target for FUZZ_SECONDS (30)
	@fuzz/run.sh $(FUZZ_SECONDS)
