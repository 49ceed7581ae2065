# Two commands do everything on a fresh Debian machine with Rust:
#   make demo   installs what is missing, builds, and runs a notebook in a sandbox
#   make test   installs what the tests need (engine, images, R, ...), and passes all of them
# Both are safe to repeat, and quick the second time.

CELLKEEP := target/release/cellkeep
TEST_KERNELS := python r deno bash
OUT := target/demo

.PHONY: all build web demo test check unit bench images kernels setup-demo setup-test clean

all: build

# build.rs builds the agent statically and puts it into the binary.
build: web
	cargo build --release --locked

# The page of `cellkeep serve` and the plotting libraries of exported pages, from npm. A build without them works: it has no page,
# and its plots are not interactive.
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

# All tests run, or fail: none is left out because something is missing. They use the debug build, so a machine that only tests never waits for a release build.
test: export CELLKEEP_TEST_ALL := 1
test: setup-test web check kernels images unit

kernels:
	@cargo build --quiet --locked
	@target/debug/cellkeep kernels install $(TEST_KERNELS)

images:
	@cargo build --quiet --locked
	@target/debug/cellkeep images build $(TEST_KERNELS)

check:
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --quiet --no-deps --all-features --document-private-items
	@sh scripts/check-links.sh

# Unit, architecture, oracle and integration tests, all in one run.
unit:
	cargo nextest run --locked --all-features --no-fail-fast

bench: setup-test build
	@$(CELLKEEP) kernels install python
	@-$(CELLKEEP) images build python
	@-target/test-venv/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/bench-requirements.txt
	cargo bench --locked --bench spine

clean:
	cargo clean
	rm -rf web/node_modules web/dist/*.js web/dist/page web/npm
