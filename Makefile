# make demo   train, evaluate and time a small LAUD Faster R-CNN on real photographs
# make digits accuracy against latency on handwritten digits, all paradigms (half an hour)
# make test   run the tests
# make env    only set up; make -s python prints the interpreter
PYTHON ?= python3
WORK ?= work_dirs/demo
DIGITS ?= work_dirs/digits

.PHONY: env python test demo digits
env:
	@$(PYTHON) tools/setup_env.py > /dev/null

python:
	@$(PYTHON) tools/setup_env.py

test: env
	.venv/bin/python -m pytest $(TESTS)

demo: env
	.venv/bin/python tools/run_demo.py --work-dir $(WORK)

digits: env
	.venv/bin/python tools/run_digits.py --work-dir $(DIGITS)
