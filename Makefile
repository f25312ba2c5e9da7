# make demo                real text → tokenizer → pretrained encoder → scores → a folder that PyTorch loads
# make recipe RECIPE=gl    the same with more text and a larger encoder; gl: configs/gl.py, or cs de nl no pl pt sv tr
# make test                every fast test
# All work on a fresh clone: they make .venv and install into it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= $(if $(shell command -v apt-get 2>/dev/null),configs/demo_gl.py,configs/demo_sv.py)
CONFIG := $(if $(wildcard configs/$(RECIPE).py),configs/$(RECIPE).py,$(RECIPE))
# Each recipe its own run: a directory refuses another recipe than the one that it was started with.
RUN ?= $(if $(findstring demo_gl,$(CONFIG)),demo,$(basename $(notdir $(CONFIG))))
# What its masks are filled in: the sentences in the recipe's own text.
FILLS ?= $(shell grep -soh -- '--fill "[^"]*"' $(CONFIG))

# A test process a core: most of the time is compiling.
WORKERS := --numprocesses=auto --dist=worksteal

.PHONY: demo recipe test test-slow lint clean

demo recipe: $(VENV)/ready
	$(BIN)/python -m jaxbert.prepare --config=$(CONFIG)
	$(BIN)/python -m jaxbert.train --config=$(CONFIG) --workdir=runs/$(RUN)
	$(BIN)/python -m jaxbert.evaluate --workdir=runs/$(RUN) $(FILLS)
	$(BIN)/python -m jaxbert.export --workdir=runs/$(RUN) --out=exported/$(RUN)

test: $(VENV)/ready
	$(BIN)/python -m pytest $(WORKERS)

test-slow: $(VENV)/slow
	$(BIN)/python -m pytest -m slow $(WORKERS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# PyTorch's CPU build first: on Linux the plain one brings gigabytes of CUDA. Where there is no CPU build, the plain one.
$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --retries 0 --timeout 10 --extra-index-url https://download.pytorch.org/whl/cpu \
	  "torch==2.13.0+cpu" || $(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet -e ".[prepare,tfds,torch,tensorboard,test]"
	touch $@

# What only slow tests need, and those that compile for TPUs: accelerate, Apache Beam, libtpu, and an older transformers in an environment of its own, whose
# PyTorch is the other's.
$(VENV)/slow: $(VENV)/ready
	$(BIN)/pip install --quiet -e ".[bench,beam,tpu]"
	$(BIN)/python -m venv $(VENV)/transformers457
	$(VENV)/transformers457/bin/pip install --quiet "transformers==4.57.6"
	packages='import site; print(site.getsitepackages()[0])'; $(BIN)/python -c "$$packages" \
	  > $$($(VENV)/transformers457/bin/python -c "$$packages")/torch.pth
	touch $@

clean:
	rm -rf data runs exported
