# make demo: end to end on a small generated data set.  make test: the tests.  Both first create .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := data/vimeo_triplet_demo
RUN := runs/demo
TRAIN = $(PY) train_vimeo90k.py --data $(DEMO) --model_name IFRNet_S --batch_size 8 --crop 64 --lr_start 1e-3 \
	--lr_end 1e-4 --channels_last --log_path $(RUN)

.PHONY: setup demo test lint

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed, not %d.%d; name one: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Creating the environment in $(VENV): about 6 GB to download and unpack, 2 minutes with a fast connection"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

demo: setup
	@echo "== 1/5  Photographs in motion, in the layout of Vimeo90K, with exact flow (10 s)"
	$(PY) -m datasets.synthetic --out $(DEMO) --overwrite
	@echo "== 2/5  Scores: averaging, the shipped weights, and a new network after one iteration (15 s)"
	rm -rf $(RUN)
	$(TRAIN) --iterations 1 --log_every 1
	$(PY) benchmarks/Vimeo90K.py --data $(DEMO) --model_name average IFRNet_S --out $(RUN)/shipped
	$(PY) benchmarks/Vimeo90K.py --data $(DEMO) --model_name IFRNet_S \
		--checkpoint $(RUN)/IFRNet_S/latest.pth --out $(RUN)/before
	@echo "== 3/5  That network trains for 48 epochs (60 s): loss falls, score rises; learning motion would take an hour"
	$(TRAIN) --iterations 240 --log_every 48 --eval_iterations 240 --resume auto
	@echo "== 4/5  Its score on the same test list now (10 s)"
	$(PY) benchmarks/Vimeo90K.py --data $(DEMO) --model_name IFRNet_S \
		--checkpoint $(RUN)/IFRNet_S/latest.pth --out $(RUN)/after
	@echo "== 5/5  Frames between two frames, with the shipped weights (10 s)"
	$(PY) demo_2x.py
	$(PY) demo_8x.py
	@echo "Done. Look at the pictures named above; the run, its log and its curves are in $(RUN)/IFRNet_S."

# Two test files at a time, one thread each: most tests use a single core.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

lint: setup
	$(PY) -m ruff check .
