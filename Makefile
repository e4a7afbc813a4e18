# Each target makes .venv and installs what it needs by itself; `make demo` on a fresh machine is enough.
# Where packages come from is pip's own configuration (PIP_INDEX_URL and the like); nothing here names an index.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := runs/demo
PAGE   := docs/benchmarks.md
BENCH  := build/bench# not under runs/: a model with random weights must not be the newest one there

# A real video where there is one: Debian's opencv-doc has vtest.avi.
VTEST  := usr/share/doc/opencv-doc/examples/data/vtest.avi
VIDEO  := $(firstword $(wildcard $(SPT_VTEST) .cache/opencv-doc/$(VTEST) /$(VTEST)) $(BENCH)/data/demo.mp4)

# What OpenVINO computes in on this processor: fp32, and bf16 where it has that. Asked when a recipe is about to run.
PRECISIONS = $(shell $(BIN)/python -c 'from spt_deploy.runtimes.openvino_runner import precisions_here; print(*precisions_here(), sep=",")')

.PHONY: help setup demo test check bench bench-page endurance gpu-check clean
.DEFAULT_GOAL := help

help:
	@echo 'make setup   .venv with everything pinned by constraints.txt'
	@echo 'make demo    train a small SPT, export it, prove it equal, run it on a video (minutes on two cores)'
	@echo 'make test    the tests'
	@echo 'make check   ruff, mypy, import-linter'
	@echo 'make bench   SPT-T against Swin-T in every runtime here, a step of training, and infer against its bound'
	@echo 'make bench-page  docs/benchmarks.md and its plot, on this machine (a quarter of an hour); PAGE=FILE.md for another'
	@echo 'make endurance  ten thousand frames and five thousand damaged files through infer (minutes)'
	@echo 'make gpu-check  on a machine with an NVIDIA GPU: GPU tests, numerics and speed of the kernels (eight minutes)'
	@echo 'make clean   remove .venv, caches and the demo; runs/ of your own stay'

setup: $(STAMP)

# Installs anew whenever what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt tools/ensure_cv2.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' || { \
	    echo 'error: $(PYTHON) is missing or not Python 3.10 to 3.14 (for newer ones there is no torch 2.13); install one, or name one: make setup PYTHON=python3.12' >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo 'error: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv' >&2; exit 1; }
	$(BIN)/pip install -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[cpu,train,dev]'
	$(BIN)/python tools/ensure_cv2.py --constraints constraints.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/02_detect/make_data.py data/demo --val 150 --size 160
	$(BIN)/spt-deploy train data/demo --task detect --model spt_micro --imgsz 128 --epochs 10 --batch 8 --lr 1e-3 --alpha 1 --overwrite --out $(DEMO)
	$(BIN)/spt-deploy export $(DEMO)/best.pt
	$(BIN)/spt-deploy validate $(DEMO)/best.pt $(DEMO)/best.onnx --data data/demo/val --labels data/demo
	$(BIN)/spt-deploy infer data/demo/demo.mp4 --model $(DEMO)/best.onnx --out $(DEMO)/infer
	@echo
	@echo 'The whole way, once:'
	@echo '  $(DEMO)/report.md                 how training went, to be read first'
	@echo '  $(DEMO)/best.onnx                 the model, one file for every runtime'
	@echo '  $(DEMO)/infer/annotated.mp4       look at this: boxes on the moving objects, and where attention was spent'
	@echo '  $(DEMO)/infer/predictions.jsonl   the same as numbers, a line a frame'
	@echo '  $(DEMO)/infer/summary.json        frames, time of every stage'

# Two processes, each with whole files, so that what a file's tests share is made once.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python tools/random_checkpoints.py $(BENCH) swin_t spt_t
	$(BIN)/spt-deploy export $(BENCH)/swin_t.pt
	$(BIN)/spt-deploy export $(BENCH)/spt_t.pt
	$(BIN)/spt-deploy bench $(BENCH)/swin_t.pt $(BENCH)/swin_t.onnx $(BENCH)/spt_t.onnx --ratio 1,0.5,0.25,0.1 --precision "$(PRECISIONS)"
	$(BIN)/python tools/bench_hugging_face.py $(BENCH)/swin_t.onnx
	$(BIN)/spt-deploy bench $(BENCH)/swin_t.pt $(BENCH)/spt_t.pt --training --batch 8 --ratio 1,0.25 --rounds 10
	$(BIN)/python tools/bench_build.py $(BENCH)/spt_t.onnx
	$(BIN)/python tools/random_checkpoints.py $(BENCH) --imgsz 128 spt_micro
	$(BIN)/spt-deploy export $(BENCH)/spt_micro.pt
	test -f "$(VIDEO)" || $(BIN)/python examples/02_detect/make_data.py $(BENCH)/data --train 1 --val 1
	for runtime in onnxruntime auto; do \
		$(BIN)/python tools/bench_pipeline.py $(BENCH)/spt_micro.onnx "$(VIDEO)" --frames 795 --times 4 --runtime $$runtime && \
		$(BIN)/python tools/bench_pipeline.py $(BENCH)/spt_t.onnx "$(VIDEO)" --video-out --frames 480 --rounds 3 --runtime $$runtime || \
		exit 1; done

# docs/benchmarks.md, with its plot: shares forced at 224x224; the best quarter kept by the model itself, int8 too; and
# 800x1280, where packing avoids padding as well.
bench-page: $(STAMP)
	$(BIN)/python tools/random_checkpoints.py $(BENCH) swin_t spt_t
	$(BIN)/python tools/random_checkpoints.py $(BENCH) --keep 0.25 spt_t
	$(BIN)/python tools/random_checkpoints.py $(BENCH)/large --imgsz 800x1280 swin_t spt_t
	for model in swin_t spt_t spt_t_keep_25 large/swin_t large/spt_t; do \
		$(BIN)/spt-deploy export $(BENCH)/$$model.pt || exit 1; done
	$(BIN)/python tools/int8_unchecked.py $(BENCH)/spt_t_keep_25.onnx $(BENCH)/spt_t_keep_25.int8.onnx
	$(BIN)/spt-deploy bench $(BENCH)/swin_t.pt $(BENCH)/swin_t.onnx $(BENCH)/spt_t.onnx \
		--ratio 1,0.5,0.25,0.1 --precision "$(PRECISIONS)" --json > $(BENCH)/224x224.json
	$(BIN)/spt-deploy bench $(BENCH)/swin_t.pt $(BENCH)/swin_t.onnx $(BENCH)/spt_t_keep_25.onnx \
		$(BENCH)/spt_t_keep_25.int8.onnx --precision "$(PRECISIONS)" --json > "$(BENCH)/224x224, the best quarter.json"
	$(BIN)/spt-deploy bench $(BENCH)/large/swin_t.onnx $(BENCH)/large/spt_t.onnx \
		--ratio 1,0.25 --precision "$(PRECISIONS)" --batch 1 --rounds 9 --json > $(BENCH)/800x1280.json
	$(BIN)/python tools/benchmarks_page.py $(PAGE) $(BENCH)/224x224.json \
		"$(BENCH)/224x224, the best quarter.json" $(BENCH)/800x1280.json

endurance: $(STAMP)
	$(BIN)/python tools/endurance.py
	$(BIN)/python tools/fuzz_infer.py --count 5000

# With the Python that is there: a GPU machine has its own torch, and needs triton, numpy, click, rich and pytest beside it.
gpu-check:
	PYTHONPATH=.:export:plugins $(PYTHON) -m spt_deploy.workflows.gpu

clean:
	rm -rf $(VENV) build dist data/demo $(DEMO) $(BENCH) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
