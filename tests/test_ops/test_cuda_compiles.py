"""The CUDA kernels compile without a warning, spill no registers, and use what the docs say."""
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / 'tools' / 'check_cuda.py'
NOTED = ROOT / 'docs' / 'kernels.json'


@pytest.fixture(scope='module')
def check_cuda():
    spec = importlib.util.spec_from_file_location('check_cuda', CHECK)
    module = importlib.util.module_from_spec(spec)
    sys.modules['check_cuda'] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='nvcc is missing')
@pytest.mark.parametrize('name, arch', [
    ('row_gemm_half', '80'), ('units', '80'), ('maskers', '90'), ('row_copies', '120'),
    ('excite', '120')])
def test_kernels_compile(name, arch, tmp_path):
    # One architecture each; `make cuda-check` compiles all for all.
    table = tmp_path / 'kernels.json'
    done = subprocess.run([sys.executable, CHECK, '--only', name, '--arch', arch, '--table', table],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'sm_{arch}' in done.stdout and 'kernel' in done.stdout
    version = subprocess.run(['nvcc', '--version'], capture_output=True, text=True).stdout
    noted = json.loads(NOTED.read_text())
    for row in json.loads(table.read_text()):
        # Other compilers allot other registers.
        assert row in noted or 'release 13.0' not in version, 'run make cuda-check'


def test_all_kernels_are_noted_for_all_architectures_and_none_spills(check_cuda):
    noted = json.loads(NOTED.read_text())
    names = {arch: {row['name'] for row in noted if row['arch'] == arch}
             for arch in check_cuda.ARCHITECTURES}
    assert len(set(map(frozenset, names.values()))) == 1
    sources = ''.join(path.read_text() for path in check_cuda.KERNELS.glob('*.cu*'))
    for name in names['90']:
        assert re.match(r'\w+', name).group() in sources, f'{name} is gone'
    for kernel in set(re.findall(r'^\s+(\w+_kernel)\(', sources, re.MULTILINE)):
        assert any(name.startswith(kernel) for name in names['90']), f'{kernel} is not noted'
    assert all(row['spilled'] == 0 and row['blocks'] >= 1 for row in noted)


def test_the_table_of_kernels_is_made_of_the_notes(check_cuda):
    table = check_cuda.markdown(json.loads(NOTED.read_text()))
    assert table in (ROOT / 'docs' / 'ops.md').read_text(), \
        'paste what `python tools/check_cuda.py --markdown docs/kernels.json` prints'


def test_what_a_kernel_uses_says_how_many_blocks_fit(check_cuda):
    def blocks(registers, threads, shared=0, name='one_kernel', arch='90'):
        return check_cuda.Kernel(arch, name, registers, 0, shared, threads).blocks
    assert blocks(32, 1024) == 2 and blocks(64, 1024) == 1 and blocks(255, 256) == 1
    assert blocks(16, 32) == 32 and blocks(16, 32, arch='120') == 24
    assert blocks(32, 128, 75 << 10) == 3
    tile = 'row_gemm_kernel<__half, Tile<128, 128, 64, 32, 2, 4>, 16>'
    kernel = check_cuda.Kernel('90', tile, 128, 0, 2560, 256)
    assert kernel.dynamic_shared == 4 * 256 * 64 + 128 * (128 * 2 + 16) and kernel.blocks == 2
