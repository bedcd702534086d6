# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test lint bench

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/harness run --grid benchmarks/grids/quickstart.yaml
	$(BIN)/harness report runs/quickstart --out runs/quickstart/report.html
	@echo "Next: images of your own: $(BIN)/harness init --data FOLDER writes a grid for them; README, \"Your own data\""

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: install
	$(BIN)/python benchmarks/speed/report.py $(if $(WEIGHTS),--weights $(WEIGHTS))
	$(BIN)/python benchmarks/speed/leaderboard.py
