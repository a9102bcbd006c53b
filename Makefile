# Two commands: `make run` and `make test`.
.PHONY: run test build lint bench nightly independent

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
PROGRAM := $(TARGET)/release/highwater

## Build the program and start the demo on http://127.0.0.1:7700
run: build
	$(PROGRAM) demo

build:
	$(CARGO) build --release --locked -p highwater-server

## Everything that every change must pass: lints, tests, and the independent count.
test: lint
	$(CARGO) test --workspace --locked
	bash tests/independent/run.sh debug

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	bash tests/supply-chain.sh

## Compare every answer of a node with a count in Python and the lake with another engine.
independent:
	bash tests/independent/run.sh debug

# Named together with the server, so that the query engine is not compiled a second time with other features.
## Figures for docs/PERFORMANCE.md.
bench: build
	$(CARGO) bench -p highwater-server -p highwater-ingest --bench decode
	$(CARGO) bench -p highwater-server -p highwater-log --bench append
	$(CARGO) bench -p highwater-server -p highwater-auth --bench decide
	$(CARGO) bench -p highwater-server -p highwater-warehouse --bench cold_keys
	$(CARGO) bench -p highwater-server -p highwater-sql --bench micro_batch
	$(CARGO) bench -p highwater-server -p highwater-sql --bench nexmark
	$(CARGO) bench -p highwater-server -p highwater-search --bench find
	for what in bench-http bench-pages bench-subscribers bench-replay storm; do $(CARGO) run --release -p xtask -- $$what --program $(PROGRAM) || exit 1; done

## The long runs: 100,000 power cuts, every bit of a segment flipped, 2,000 seeds of whole nodes in simulation, 1,000 kills, 2,000 oracle seeds, a million mutated inputs, planted bugs, the OpenAPI
## document against a node with each role (needs Python), and half an hour of coverage-guided fuzzing for each parser.
nightly:
	HIGHWATER_SEEDS=100000 $(CARGO) test --release -p highwater-log --test journal power_cuts
	$(CARGO) test --release -p highwater-log --test journal -- --ignored
	HIGHWATER_SEEDS=2000 $(CARGO) test --release -p highwater-server --bin highwater simulation
	HIGHWATER_SEEDS=2000 $(CARGO) test --workspace --test oracle
	HIGHWATER_CYCLES=1000 $(CARGO) test --workspace --test crash -- --nocapture
	HIGHWATER_SEEDS=2000 $(CARGO) test --workspace --test kills --test door
	HIGHWATER_EVENTS=1000000 $(CARGO) test --workspace --test nexmark
	HIGHWATER_FUZZ=1000000 $(CARGO) test --workspace --test fuzz
	HIGHWATER_CYCLES=200 bash tests/planted.sh
	$(CARGO) build --workspace --locked && bash tests/conformance/run.sh
	fuzz/run.sh 1800
