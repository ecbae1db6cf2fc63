# Every target does the set-up it needs; a second run of `make setup` does nothing.
#   make setup        .venv from requirements.lock; TORCH=cuda, EXTRAS="libero ray rerun" for more than the default
#   make libero       LIBERO too: its simulation beside our torch, and its assets (or what is left to do about them);
#                     EXTRAS="ray" for more beside it
#   make quickstart   the whole story at toy size; ends in a report
#   make check        lint, types, quick tests: under three minutes
#   make test         lint, types, every test but the long campaigns
#   make acceptance   the long campaigns, resumable
#   make benchmarks   the tables in benchmarks/README.md and README.md, from the committed results
#   make lock         resolve requirements.lock again

empty :=
LOCKED := $(shell cat requirements.lock pyproject.toml tools/setup.sh | cksum | tr -d ' ')
STAMP = .venv/stamp-$(LOCKED)-$(subst $(empty) ,_,$(strip $(TORCH) $(1)))
BIN := .venv/bin
UV := uv==0.13.8
CODE := lawm_policy tests benchmarks

export TORCH EXTRAS PYTHON
# One thread a test worker: two workers that each start a thread a core only wait for each other.
check test: export OMP_NUM_THREADS = 1
.PHONY: setup libero quickstart lint check test acceptance benchmarks lock clean browser

setup: $(call STAMP,$(EXTRAS))

# Whoever has extras has the default too.
$(call STAMP,$(EXTRAS)):
	@tools/setup.sh
	@find .venv -maxdepth 1 -name 'stamp-*' ! -name 'stamp-$(LOCKED)-*' -delete && touch $@ $(call STAMP)

libero:
	@$(MAKE) --silent setup EXTRAS="$(sort libero $(EXTRAS))"
	@$(BIN)/python -m lawm_policy.sim.libero_assets

quickstart: setup
	@$(BIN)/lawm quickstart

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

check: lint
	$(BIN)/pytest -q -n logical --maxprocesses 8 -m "not slow and not acceptance"

test: lint browser
	$(BIN)/pytest -n logical --maxprocesses 8 -m "not acceptance" --durations 15

acceptance: libero browser
	$(BIN)/pytest -m acceptance
	$(BIN)/python benchmarks/expert_rates.py --resume --out benchmarks/results/expert_rates
	$(BIN)/python benchmarks/gates.py --resume --out benchmarks/results/gates
	$(BIN)/python benchmarks/faults.py --resume --out benchmarks/results/faults
	$(BIN)/python benchmarks/libero_experts.py --resume --out benchmarks/results/libero_experts
	$(BIN)/python benchmarks/libero_faults.py --resume --out benchmarks/results/libero_faults

browser:
	@tools/system_packages.sh browser

benchmarks: setup
	$(BIN)/python benchmarks/table.py

lock: setup
	$(BIN)/pip install --quiet $(UV)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group torch --generate-hashes \
		--no-header --no-emit-index-url --upgrade --output-file requirements.lock pyproject.toml
	@if grep -nE '^(torch|torchvision|triton|nvidia-|cuda-)|://' requirements.lock; then \
		echo "requirements.lock must name no build of torch and no host"; exit 1; fi

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
