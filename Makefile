# make demo   train, evaluate and time a small LAUD Faster R-CNN on real photographs
# make coco   train and evaluate all five detectors at small width on the same photographs
# make digits accuracy against latency on handwritten digits, all paradigms (half an hour)
# make test   run the tests
# make lint   check style and types
# make docs   the documentation, into build/site; fails at any warning
# make gallery train three small detectors and draw what they skip, for the documentation
# make zoo    write model_zoo.md, model-index.yml and metafiles/ from configs and results
# make dist   source archive and wheel, into dist/
# make env    only set up; make -s python prints the interpreter
PYTHON ?= python3
WORK ?= work_dirs/demo
DIGITS ?= work_dirs/digits

.PHONY: env python test lint docs gallery zoo dist demo coco digits
env:
	@$(PYTHON) tools/setup_env.py > /dev/null

python:
	@$(PYTHON) tools/setup_env.py

test: env
	.venv/bin/python -m pytest $(TESTS)

lint: env
	.venv/bin/python -m ruff check
	.venv/bin/python -m mypy

docs: env
	.venv/bin/python -m mkdocs build --strict

gallery: env
	.venv/bin/python tools/make_gallery.py

zoo: env
	.venv/bin/python tools/make_model_zoo.py

dist: env
	rm -rf dist
	.venv/bin/python -m build --no-isolation

demo: env
	.venv/bin/python tools/run_demo.py --work-dir $(WORK)

coco: env
	.venv/bin/python tools/run_coco_small.py

digits: env
	.venv/bin/python tools/run_digits.py --work-dir $(DIGITS)
