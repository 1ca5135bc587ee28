# ws-clean-close. `make demo` shows the main job working, `make test` passes the tests; both fetch
# what they need into target/, or say in one line what is missing.

MODULE := target/wasm32-wasip1/release/ws_clean_close.wasm

.PHONY: help demo demo-page test test-istio test-envoy-gateway test-matrix lint wasm probe image release sbom table picture page-picture
.PHONY: interop load soak fuzz audit advisories clean simulate mutants crds
.PHONY: bench bench-compare bench-report bench-scanner bench-scanner-baseline
.DEFAULT_GOAL := help

help:
	@echo "Use"
	@echo "  make demo         default, baseline and filter side by side on real Envoys"
	@echo "  make demo-page    the same in your own browser: a page on localhost, until Ctrl-C"
	@echo "  make wasm         the module: $(MODULE)"
	@echo "  make probe        the probe as a static binary for Linux (elsewhere: cargo install --path crates/probe)"
	@echo "  make image        module and probe as OCI images, and the manifests that name them, in target/image"
	@echo "Test"
	@echo "  make test         format, lint and all tests on real Envoys, servers and browsers"
	@echo "  make simulate     LIVES=1000000 simulated WebSockets in virtual time"
	@echo "  make mutants      changes each rule and expects a test to fail (20 minutes)"
	@echo "  make fuzz         each fuzz target, and a hostile host, for ten minutes"
	@echo "  make soak         2,000 WebSockets coming and going for half an hour"
	@echo "  make load         20,000 WebSockets on two workers, a tenth of them closing each second (7 minutes)"
	@echo "  make interop      libraries against each other, and applications, into docs/interop.md (20 minutes)"
	@echo "  make test-matrix  the core tests on Envoy 1.36 to 1.40, into docs/compatibility.md"
	@echo "  make test-istio   the manifests through Istio's own control plane and tools (needs Go)"
	@echo "  make test-envoy-gateway  the same through Envoy Gateway (needs Go and root)"
	@echo "Measure"
	@echo "  make bench        what the filter costs: time, memory, size (ten minutes)"
	@echo "  make bench-report write what it found into docs/performance.md and docs/plots"
	@echo "  make bench-compare BASE=<commit>: floods, round trips and requests, before and after in one run"
	@echo "  make bench-scanner the frame scanner alone, compared with 'make bench-scanner-baseline'"
	@echo "  make table        measure the tables of the README and docs/http2.md and write them there"
	@echo "  make picture      draw docs/dashboard.svg from a minute of real numbers"
	@echo "  make page-picture take the demo page's pictures, docs/demo-page.png and docs/close.svg"
	@echo "Release"
	@echo "  make release      module, probe, images, manifests and their checksums, in target/dist"
	@echo "  make sbom         what is in module and probe, as CycloneDX, in target/sbom"
	@echo "  make audit        licences and sources of all dependencies, by cargo-deny"
	@echo "  make advisories   their known vulnerabilities; fetches the RustSec database"
	@echo "  make crds         the schemas of Istio's CRDs in tests/istio, from Istio's Go module (needs Go)"
	@echo "  make clean        removes everything that was built or fetched"

need = @command -v $(1) >/dev/null || { echo "make: no $(1): $(2)"; exit 1; }

.PHONY: tools
tools:
	$(call need,cargo,install rustup from https://rustup.rs)
	$(call need,cc,install a C compiler (Debian: apt-get install build-essential))
	$(call need,node,install Node.js 20 or later from https://nodejs.org)
	$(call need,npm,install npm (it comes with Node.js))

wasm:
	$(call need,cargo,install rustup from https://rustup.rs)
	@scripts/build-module
	@echo "$(MODULE): $$(wc -c < $(MODULE)) bytes"

# IMAGE=registry/name:tag is where it is going to be pushed: set in the manifests beside it. PROBE_IMAGE: the same
# for the probe, if not beside the other as ws-close-probe. Without a static probe it is left out.
image: wasm
	@probe=$$(scripts/build-probe) || [ $$? = 3 ] || exit 1; \
	cargo run --quiet --package image -- $(if $(IMAGE),--image $(IMAGE)) \
		$(if $(PROBE_IMAGE),--probe-image $(PROBE_IMAGE)) $${probe:+--probe "$$probe"}

demo: tools
	@cargo run --quiet --package demo

# PORT=n: another port than 8710; 0 is any that is free.
demo-page: tools
	@cargo run --quiet --package demo-page -- $(if $(PORT),--port $(PORT))

# LIVES: how many the simulator lives.
test: tools lint
	LIVES=200000 cargo test --workspace

simulate:
	LIVES=$(or $(LIVES),1000000) cargo test --quiet --package ws-clean-close-core --test simulator -- --nocapture

# .cargo/mutants.toml has what is left out, and why.
mutants:
	@scripts/mutants

# What is shipped for Istio, through Istio itself.
test-istio: tools lint
	cargo test --test istio

# What is shipped for Envoy Gateway, through Envoy Gateway itself.
test-envoy-gateway: tools lint
	cargo test --test envoy_gateway

# The core tests on Envoy 1.36 to 1.40; the results go into docs/compatibility.md.
test-matrix: tools lint
	@scripts/test-matrix

lint: wasm
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo fmt --manifest-path crates/testbed/peers/rust/Cargo.toml --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo clippy --quiet --test istio --test envoy_gateway -- -D warnings
	cargo clippy --quiet --target wasm32-wasip1 -- -D warnings

# Measures the README's table of scenarios anew, and that of docs/http2.md.
table: tools
	UPDATE_README=1 cargo test --test scenarios --test http2 --test http3

# The schemas of Istio's CRDs that the manifests are checked against; crates/testbed/src/crds.rs has the release.
crds:
	$(call need,go,install Go 1.26 or later from https://go.dev/dl)
	UPDATE_CRDS=1 cargo test --quiet --test manifests kept_crds_are_istios

# What the filter costs: docs/performance.md says how it is measured.
bench: tools
	cargo bench --package benches --bench cost

bench-report: tools
	cargo bench --quiet --package benches --bench cost -- report

# ITEMS: some of them.
bench-compare: tools
	@test -n "$(BASE)" || { echo "make: BASE=<commit>: what to compare with"; exit 1; }
	@scripts/bench-compare "$(BASE)" $(or $(ITEMS),floods pingpong requests)

# Keeps the scanner's present figures, to compare with.
bench-scanner-baseline: tools
	cargo bench --package benches --bench scanner -- --save-baseline kept

# Reports of each figure whether it is better or worse than what was kept.
bench-scanner: tools
	@test -n "$$(find target/criterion -type d -name kept 2>/dev/null | head -1)" || \
		{ echo "make: nothing to compare with: run 'make bench-scanner-baseline' first"; exit 1; }
	cargo bench --package benches --bench scanner -- --baseline kept

# Draws docs/dashboard.svg from a minute of real numbers.
picture: tools
	cargo run --quiet --package benches --bin dashboard-picture

# Takes the demo page's pictures: one with what it counts, and one close in motion.
page-picture: tools
	cargo run --quiet --package demo-page -- --port 0 --pictures

probe:
	$(call need,cargo,install rustup from https://rustup.rs)
	$(call need,cc,install a C compiler (Debian: apt-get install build-essential))
	@scripts/build-probe

# What is published, in target/dist; IMAGE as for `make image`, SBOM=1 with `make sbom`. The same bytes from the same
# code.
release: image
	@SBOM=$(SBOM) scripts/release

sbom:
	$(call need,cargo,install rustup from https://rustup.rs)
	@scripts/sbom

# Everybody's WebSocket: measures and writes the tables in docs/interop.md. SERVERS=Jetty,ws: these alone, and no table.
interop: tools
	cargo test --no-fail-fast --test interop --test applications -- --ignored --nocapture

# LOAD_SECONDS: how long they come and go. WEBSOCKETS: how many at most.
load: tools
	cargo test --test load -- --ignored --nocapture

soak: tools
	cargo test --test stress -- --ignored --nocapture soak

# Core, and the module under a hostile host; cargo-fuzz is not needed. scripts/fuzz 60 scanner: one, for a minute.
fuzz: tools
	@scripts/fuzz

audit: tools
	@scripts/audit

advisories: tools
	@scripts/audit advisories

clean:
	cargo clean
