"""The CUDA kernels compile without a warning and spill no registers."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[2] / 'tools' / 'check_cuda.py'


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='nvcc is missing')
@pytest.mark.parametrize('name, arch', [
    ('row_gemm_half', '80'), ('units', '80'), ('maskers', '90'), ('row_copies', '120'),
    ('excite', '120')])
def test_kernels_compile(name, arch):
    # One architecture each; `make cuda-check` compiles all for all.
    done = subprocess.run([sys.executable, CHECK, '--only', name, '--arch', arch],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'sm_{arch}' in done.stdout and 'kernel' in done.stdout
