# ws-clean-close. `make demo` shows the main job working, `make test` passes the tests; both fetch
# what they need into target/, or say in one line what is missing.

MODULE := target/wasm32-wasip1/release/ws_clean_close.wasm

.PHONY: help demo test lint wasm table bench picture interop soak fuzz audit advisories clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    default, baseline and filter side by side on real Envoys (a minute, once built)"
	@echo "make test    format, lint and all tests on real Envoys, servers and browsers"
	@echo "make wasm    only the module: $(MODULE)"
	@echo "make table   measure the tables of the README and docs/http2.md and write them there"
	@echo "make bench   what the filter costs: Envoy's CPU time with and without it"
	@echo "make picture draw docs/dashboard.svg from a minute of real numbers"
	@echo "make interop every library against every other, and the table in docs/interop.md (5 minutes)"
	@echo "make soak    2,000 WebSockets coming and going for half an hour"
	@echo "make fuzz    each fuzz target for ten minutes"
	@echo "make audit   licences and sources of all dependencies, by cargo-deny (builds it first)"
	@echo "make advisories  their known vulnerabilities; fetches the RustSec database"
	@echo "make clean   everything that was built or fetched"

need = @command -v $(1) >/dev/null || { echo "make: no $(1): $(2)"; exit 1; }

.PHONY: tools
tools:
	$(call need,cargo,install Rust 1.89 or later from https://rustup.rs)
	$(call need,cc,install a C compiler (Debian: apt-get install build-essential))
	$(call need,node,install Node.js 20 or later from https://nodejs.org)
	$(call need,npm,install npm (it comes with Node.js))

wasm:
	$(call need,cargo,install Rust 1.89 or later from https://rustup.rs)
	@scripts/build-module
	@echo "$(MODULE): $$(wc -c < $(MODULE)) bytes"

demo: tools
	@cargo run --quiet --example demo

test: tools lint
	cargo test --workspace

lint: wasm
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo clippy --quiet --target wasm32-wasip1 -- -D warnings

# Measures the README's table of scenarios anew, and that of docs/http2.md.
table: tools
	UPDATE_README=1 cargo test --test scenarios --test http2

# What the filter costs, as ratios of Envoy's CPU time with and without it.
bench: tools
	cargo bench --bench cost

# Draws docs/dashboard.svg from a minute of real numbers.
picture: tools
	cargo run --quiet --example dashboard_picture

# Everybody's WebSocket: measures and writes the table in docs/interop.md.
interop: tools
	cargo test --test interop -- --ignored --nocapture

soak: tools
	cargo test --test soak -- --ignored --nocapture

# The parts that know no proxy; cargo-fuzz is not needed. scripts/fuzz 60 scanner: one, for a minute.
fuzz: tools
	@scripts/fuzz

audit: tools
	@scripts/audit

advisories: tools
	@scripts/audit advisories

clean:
	cargo clean
