# The two commands: `make demo` runs the main job, `make test` the tests. Both build .venv when it is missing.
PYTHON := .venv/bin/python
OUT ?= out
.PHONY: demo test test-s3 lint bench clean

.venv/.ready: requirements.lock
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock
	touch .venv/.ready

demo: .venv/.ready
	infra/demo $(OUT)/demo

test: .venv/.ready
	$(PYTHON) -m pytest

# on the store at PLETHORA_S3_ENDPOINT, else on one that infra/test-s3 starts and stops
test-s3: .venv/.ready
	infra/test-s3

lint: .venv/.ready
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

bench: .venv/.ready
	$(PYTHON) -m tests.benchmarks.transform
	$(PYTHON) -m tests.benchmarks.step
	$(PYTHON) -m tests.benchmarks.stream

clean:
	rm -rf $(OUT)
