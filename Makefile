# make demo   train, evaluate and time a small LAUD Faster R-CNN on real photographs
# make coco   train and evaluate all five detectors at small width on the same photographs
# make digits accuracy against latency on handwritten digits, all paradigms (half an hour)
# make test   run the tests
# make cuda-check     compile the CUDA kernels for all architectures; needs nvcc, no GPU
# make cuda-sanitize  run the GPU tests of the operations under compute-sanitizer
# make env    only set up; make -s python prints the interpreter
PYTHON ?= python3
WORK ?= work_dirs/demo
DIGITS ?= work_dirs/digits

.PHONY: env python test demo coco digits cuda-check cuda-sanitize
env:
	@$(PYTHON) tools/setup_env.py > /dev/null

python:
	@$(PYTHON) tools/setup_env.py

test: env
	.venv/bin/python -m pytest $(TESTS)

demo: env
	.venv/bin/python tools/run_demo.py --work-dir $(WORK)

coco: env
	.venv/bin/python tools/run_coco_small.py

digits: env
	.venv/bin/python tools/run_digits.py --work-dir $(DIGITS)

cuda-check:
	$(PYTHON) tools/check_cuda.py

# The caching allocator would hide reads beyond a tensor.
cuda-sanitize: env
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 \
	    .venv/bin/python -m pytest tests/test_ops/test_devices.py -k "cuda"
