# Two commands do all the set-up: `make demo` and `make test`. Both are quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := build/tiny-aya-vision-q4_k_m-int8
PICTURE := examples/pictures/six-cells.png
QUESTION := What number is at the bottom left?
WORKERS ?= 2
NATIVE := CMakeLists.txt $(wildcard quant/kernels/* runtime/acceleration/*)
# A wheel of llama-cpp-python is taken where pip finds one: PIP_EXTRA_INDEX_URL may name its author's index.
INSTALL := $(BIN)/python -m pip install --quiet --prefer-binary

# compiling our sources anew takes longer than anything else in the start of a process, and tests start hundreds
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint docs gpu slow bench train clean release-check verify-transformers5

## Install, export the small trained checkpoint, and ask about a picture.
demo: $(BUNDLE)/manifest.json
	@echo "$(PICTURE): $(QUESTION)"
	@$(BIN)/ayaedge ask -m $(BUNDLE) --image $(PICTURE) "$(QUESTION)"
	@echo "In a browser, at http://127.0.0.1:8080: $(BIN)/ayaedge serve -m $(BUNDLE)" >&2

## All tests but the slow ones; a file's tests stay on one core. WORKERS is how many at a time.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

## Style, types and the documents' links.
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples/train_tiny
	$(BIN)/mypy examples/reader
	@$(MAKE) --no-print-directory docs

## The documents as pages in build/docs; strict, and without a network.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

## Full-size synthetic checkpoints and long runs.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow

## The checklist of a release; what it builds lies in build/release.
release-check: $(VENV)/.dev
	@$(INSTALL) --constraint constraints.txt --editable ".[dev,release]"
	@$(BIN)/python release/check.py

## The comparisons with transformers, in an environment of its own whose transformers is of the series 5.
verify-transformers5: build/transformers5/.ready
	build/transformers5/bin/python -m pytest -q -m "" -W ignore tests/export/evaluation/test_parity.py \
	  tests/export/evaluation/test_saved_again.py

build/transformers5/.ready: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv build/transformers5
	grep -vE "^(transformers|optimum|huggingface-hub|tokenizers)" constraints.txt > build/transformers5/constraints.txt
	build/transformers5/bin/python -m pip install --quiet --prefer-binary \
	  --constraint build/transformers5/constraints.txt --editable ".[reference]" "transformers>=5,<6" pytest
	@touch $@

## Both halves on the real Vulkan and WebGPU code, on software drivers (Debian 12 or 13). 15 minutes to build, once.
gpu: $(VENV)/.dev
	bash tests/gpu/prepare.sh $(BIN)/python build/gpu
	PYTHONPATH=build/gpu/site GGML_VK_VISIBLE_DEVICES=0 VK_DRIVER_FILES="$$(ls /usr/share/vulkan/icd.d/lvp_icd*.json)" \
	    $(BIN)/python -m pytest -q -rA -m "gpu and not slow" tests/gpu

## Figures of speed, size and accuracy; every number in README and docs comes from here. Two hours and 60 GB of disk.
bench: $(VENV)/.dev $(BUNDLE)/manifest.json
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/second_question.py
	$(BIN)/python benchmarks/conversation.py
	$(BIN)/python benchmarks/server.py
	$(BIN)/python benchmarks/prediction.py
	$(BIN)/python benchmarks/vision_speed.py
	$(BIN)/ayaedge bench --synthetic 8b --against transformers-bf16 --chart build/bench.png
	$(BIN)/python benchmarks/encoders.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/efforts.py
	$(BIN)/python benchmarks/four_bits.py
	$(BIN)/python benchmarks/export_size.py 8b
	$(BIN)/python benchmarks/export_size.py 32b --layers 8 --part decoder vision export

## Train the small checkpoint from scratch: about an hour on two cores.
train: $(VENV)/.dev
	$(BIN)/python examples/train_tiny/train.py --out build/tiny-aya-vision

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BUNDLE)/manifest.json: $(VENV)/.export examples/tiny-aya-vision/model.safetensors $(shell find export quant -name "*.py")
	@mkdir -p $(dir $(BUNDLE))
	$(BIN)/ayaedge export examples/tiny-aya-vision -o $(BUNDLE) --force

$(VENV)/.export: pyproject.toml $(NATIVE) | $(VENV)/bin
	@test -e $(VENV)/.dev || $(INSTALL) --editable ".[export,server]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin
	$(INSTALL) --constraint constraints.txt --editable ".[dev]"
	@touch $(VENV)/.export $@

$(VENV)/bin:
	$(PYTHON) -m venv $(VENV)
