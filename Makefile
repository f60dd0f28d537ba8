# The two commands: `make demo` runs the main job, `make test` the tests. Both build .venv when it is missing.
PYTHON := .venv/bin/python
OUT ?= out
.PHONY: demo test test-s3 test-numeric lint bench bench-full chaos sbom audit clean

.venv/.ready: requirements.lock
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python requirements.lock
	touch .venv/.ready

demo: .venv/.ready
	infra/demo $(OUT)/demo

test: .venv/.ready
	$(PYTHON) -m pytest

# on the store at PLETHORA_S3_ENDPOINT, else on one that infra/test-s3 starts and stops
test-s3: .venv/.ready
	infra/test-s3

# the tests that compare rounded numbers, under each kind of arithmetic of this machine
test-numeric: .venv/.ready
	infra/test-numeric

lint: .venv/.ready
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

# every benchmark: the quick form, under 15 minutes on two cores; the long form
bench: .venv/.ready
	$(PYTHON) -m tests.benchmarks --out $(OUT)/bench.json

bench-full: .venv/.ready
	$(PYTHON) -m tests.benchmarks --full --out $(OUT)/bench-full.json

# twenty runs against faults drawn from a seed
chaos: .venv/.ready
	$(PYTHON) tests/chaos.py --runs 20 --seed 1

# what is installed, as CycloneDX JSON; and what is known against it (needs a vulnerability service)
sbom: .venv/.ready
	mkdir -p $(OUT)
	.venv/bin/uv tool run --from cyclonedx-bom cyclonedx-py environment $(PYTHON) --output-reproducible --of JSON -o $(OUT)/sbom.json

audit: .venv/.ready
	.venv/bin/uv tool run pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict

clean:
	rm -rf $(OUT)
