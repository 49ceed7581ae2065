# The two main targets, for a fresh Debian machine with Rust:
#   make demo   installs what is missing, builds, runs a notebook in a sandbox, and starts a server in the background
#   make test   installs what the tests need (engine, images, R, ...), and runs all tests
# Both are idempotent, and fast when nothing has changed. `make release` makes what strangers install.

CELLKEEP := target/release/cellkeep
TEST_KERNELS := python python-minimal r deno bash
OUT := target/demo

RELEASE_STEPS := tools binary deb wheel crate npm image sbom sums check

.PHONY: all build web demo test check unit bench fuzz images kernels pins release setup-demo setup-test clean

all: build

# build.rs builds the agent statically and embeds it in the binary.
build: web
	cargo build --release --locked

# The page of `cellkeep serve` and the plotting libraries of exported pages, built with npm. Without them the build works, but
# has no page, and plots of exported pages are not interactive.
web: web/dist/vega.js

web/dist/vega.js: web/package-lock.json web/build.mjs web/tsconfig.json web/tsconfig.npm.json web/npm.md web/languages.mjs $(wildcard web/src/*) $(wildcard languages/*)
	@sh scripts/setup-web.sh
	cd web && npm ci --silent --ignore-scripts --no-audit --no-fund && npm run --silent build

setup-demo:
	@sh scripts/setup-demo.sh

setup-test:
	@sh scripts/setup-test.sh

demo: setup-demo build
	@$(CELLKEEP) kernels install python
	@mkdir -p $(OUT)
	@$(CELLKEEP) run notebooks/quickstart.ipynb -o $(OUT)/quickstart.ipynb --artifacts $(OUT)/plots --sandbox process
	@sh scripts/demo-serve.sh $(CELLKEEP) $(OUT)

# CELLKEEP_TEST_ALL makes tests fail, instead of being skipped, if something that they need is missing. The tests use the
# debug build, so a machine that only tests needs no release build.
test: export CELLKEEP_TEST_ALL := 1
test: setup-test web check kernels images unit

# With the features of the tests, so that nothing is built twice.
kernels:
	@cargo build --quiet --locked --all-features
	@target/debug/cellkeep kernels install $(TEST_KERNELS)

images:
	@cargo build --quiet --locked --all-features
	@target/debug/cellkeep images build $(TEST_KERNELS)

check:
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --quiet --no-deps --all-features --document-private-items
	@sh scripts/check-links.sh
	@sh scripts/check-python.sh

# Unit, architecture, oracle and integration tests.
unit:
	cargo nextest run --locked --all-features --no-fail-fast

# With the profile of what is shipped.
bench: setup-test web
	cargo build --locked --profile dist
	@target/dist/cellkeep kernels install python
	@-target/dist/cellkeep images build python
	@-target/test-venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r scripts/bench-requirements.txt
	cargo bench --locked --profile dist --bench spine

# Pins the Python packages of all requirements.in again; see scripts/pin-python.sh.
pins:
	@sh scripts/pin-python.sh

# Each fuzz target for FUZZ_SECONDS (default 60), about ten minutes with the build.
fuzz:
	@sh scripts/fuzz.sh

# Packages of all kinds for this architecture, in target/release-artifacts, each installed and tried in a clean root.
release: setup-demo web
	@for step in $(RELEASE_STEPS); do sh scripts/release/$$step.sh || exit 1; done

clean:
	cargo clean
	rm -rf web/node_modules web/dist/*.js web/dist/page web/npm
