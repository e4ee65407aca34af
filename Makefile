# make demo: the whole way on a small made-up set.  make test: the tests.  Both make the environment first, in .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := data/vimeo_triplet_demo
RUN := runs/demo

.PHONY: setup demo test lint

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@echo "Making the environment in $(VENV): about 6 GB to download and unpack, 2 minutes with a fast connection"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

demo: setup
	@echo "== 1/5  Photographs in motion, in the layout of Vimeo90K, with exact flow (20 s)"
	$(PY) -m datasets.synthetic --out $(DEMO)
	@echo "== 2/5  The shipped weights, scored on its test list beside plain averaging (10 s)"
	$(PY) benchmarks/Vimeo90K.py --data $(DEMO) --model_name average IFRNet_S --out $(RUN)/before
	@echo "== 3/5  A few iterations of training from these weights (60 s)"
	rm -rf $(RUN)/IFRNet_S
	$(PY) train_vimeo90k.py --data $(DEMO) --model_name IFRNet_S --resume_path checkpoints/IFRNet_S.pth \
		--iterations 60 --batch_size 4 --crop 128 --log_every 12 --eval_iterations 60 --log_path $(RUN)
	@echo "== 4/5  The trained weights, scored on the same list (10 s)"
	$(PY) benchmarks/Vimeo90K.py --data $(DEMO) --model_name IFRNet_S \
		--checkpoint $(RUN)/IFRNet_S/best.pth --out $(RUN)/after
	@echo "== 5/5  Frames between two frames, with the shipped weights (10 s)"
	$(PY) demo_2x.py
	$(PY) demo_8x.py
	@echo "Done. Look at the pictures named above; the run, its log and its curves are in $(RUN)/IFRNet_S."

test: setup
	$(PY) -m pytest

lint: setup
	$(PY) -m ruff check .
