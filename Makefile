# Each target installs what it lacks, quietly, and says what it installed. `make help` lists them.

TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release/forefront
LOAD := python3 loadtest/run.py

.PHONY: help interop run build h3load billload test lint audit bench bench-billing syscalls load load-steady drill \
        stampede memory drain handover certificate stalled smoke drill-billing setup setup-build setup-load setup-bench \
        setup-drill-billing setup-bench-billing

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

run: build ## the whole system on loopback: two nodes, two legacy stand-ins; Ctrl-C stops it
	@exec $(RELEASE) dev

build: setup-build ## the release binary
	@cargo build --release --locked

# Not in one call with the binary, whose features the development dependencies would change.
h3load: setup-build
	@cargo build --release --locked --example h3load

billload: setup-build
	@cargo build --release --locked --example billload

test: setup-build ## all tests; needs only a Rust toolchain
	cargo test --locked

lint: setup-build ## formatting, clippy, licences and bans
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check licenses bans sources; \
	else echo "cargo-deny is not here: licences, bans and sources not checked"; fi

audit: ## known vulnerabilities in dependencies (needs cargo-deny and the advisory database's network)
	cargo deny check advisories

bench: build h3load setup-bench ## CPU per request beside nginx and haproxy, system calls per request; 9 to 12 minutes
	python3 benches/syscalls.py --binary $(RELEASE)
	python3 benches/peers.py --binary $(RELEASE)

bench-billing: build billload setup-bench-billing ## billing beside Tarantool: throughput, CPU, memory, delay of orders; 15 minutes
	python3 benches/billing/run.py --binary $(RELEASE)

load: build setup-load ## requirements R1, R3 to R8, R11: a table of bounds and figures; about 8 minutes
	$(LOAD) load --binary $(RELEASE)

load-steady: build setup-load ## 60 requests/s for 30 minutes
	$(LOAD) steady --binary $(RELEASE)

drill: build setup-load ## every fault at 120 requests/s: killed, hung, sick, slow to start, drained; about 7 minutes
	$(LOAD) faults --binary $(RELEASE)

stampede: build setup-load ## 200 clients on an emptied cache; nobody waits at expiry
	$(LOAD) stampede --binary $(RELEASE)

memory: build setup-load ## memory of the proxy while ten clients read long lists slowly
	$(LOAD) memory --binary $(RELEASE)

interop: setup-build ## clients by others: curl, OpenSSL, aioquic, Chromium, Tarantool's connector, schemathesis; installs them
	@tests/interop/setup.sh
	cargo build --locked
	python3 tests/interop/run.py --binary $(TARGET)/debug/forefront

drain: build h3load setup-load ## a node drained at 120 requests/s over each protocol; 3 minutes
	$(LOAD) drain --binary $(RELEASE)

handover: build h3load setup-load ## a node restarted at 120 requests/s while its keeper holds the sockets; 3 minutes
	$(LOAD) handover --binary $(RELEASE)

certificate: build h3load setup-load ## the certificate replaced under load; 1 minute
	$(LOAD) certificate --binary $(RELEASE)

stalled: build h3load setup-load ## clients of each protocol that read nothing of 64 MB; 2 minutes
	$(LOAD) stalled --binary $(RELEASE)

# What it takes more: `make drill-billing DRILL="leader --seed 7"`, or `DRILL=--quick`.
drill-billing: build setup-drill-billing ## billing's journal and nodes killed, frozen, moved; orders to a sick webhook; 30 minutes
	python3 loadtest/billing/drill.py --binary $(RELEASE) $(DRILL)

# Counts and no latencies, so the debug build will do, which `make test` has made already.
smoke: setup-build setup-load ## a short run of the whole system that judges counts only
	cargo build --locked
	python3 -m unittest discover -s loadtest -q
	$(LOAD) smoke --binary $(TARGET)/debug/forefront

setup: setup-build setup-load setup-bench setup-drill-billing setup-bench-billing ## everything that any target installs

setup-build:
	@command -v cargo >/dev/null || { echo "a Rust toolchain is missing: https://rustup.rs" >&2; exit 1; }
	@.ci/need cc:gcc c++:g++ cmake:cmake make:make pkg-config:pkg-config strace:strace
	@.ci/postgres

setup-load:
	@loadtest/setup.sh

setup-bench:
	@benches/setup.sh

setup-drill-billing:
	@loadtest/billing/setup.sh

setup-bench-billing:
	@benches/billing/setup.sh
