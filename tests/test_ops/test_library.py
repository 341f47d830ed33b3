"""Loading: without the extension, with a foreign one, on other instruction sets."""
import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from laud_mm import ops
from laud_mm.ops import library

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
compiled = pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')

ON_REFERENCES = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import torch
    from laud_mm import ops
    from laud_mm.models.backbones import LAUDResNet
    from laud_mm.models.dynamic import force_rate, replay
    net = LAUDResNet(50, base_channels=8, paradigm=('layer', 'channel', 'spatial', 'both'))
    net, x = net.double().eval(), torch.randn(2, 3, 40, 56, dtype=torch.float64)
    with torch.no_grad():
        with force_rate(net, 0.5):
            skipped = net(x)
        net.execution = 'masked'
        with replay(net, net.record.decisions):
            masked = net(x)
ours = [str(w.message) for w in caught if 'laud_mm' in str(w.message)]
assert len(ours) == 1, ours
assert all((a - b).abs().max() <= 1e-9 * b.abs().max() for a, b in zip(skipped, masked))
assert not ops.has_kernel('cpu')
print(ours[0])
"""


def run_copy(folder, code, extension=None, **env):
    """Run code on a copy of the package whose extension is missing, or is these bytes."""
    shutil.copytree(ROOT / 'laud_mm', folder / 'laud_mm', ignore=shutil.ignore_patterns(
        '*.so', '__pycache__', '.mim', 'csrc'))
    if extension is not None:
        (folder / 'laud_mm' / 'ops' / f'_C{SUFFIX}').write_bytes(extension)
    clean = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'LAUD_MM_OPS')}
    return subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True,
                          env=dict(clean, **env))


def test_without_the_extension_everything_runs_on_references_with_one_warning(tmp_path):
    done = run_copy(tmp_path, ON_REFERENCES)
    assert done.returncode == 0, done.stderr
    assert 'without its compiled operations' in done.stdout and 'rebuild it with' in done.stdout


def test_who_insists_on_the_extension_is_told_that_it_is_missing(tmp_path):
    done = run_copy(tmp_path, 'import laud_mm.ops', LAUD_MM_OPS='compiled')
    assert 'ImportError: LAUD_MM_OPS=compiled, but the compiled operations are missing: ' \
        'rebuild it with `pip install' in done.stderr


def foreign_library():
    """A shared library that is not ours: one of Python's own, or of torch's."""
    import torch._C
    return Path(torch._C.__file__).read_bytes()


@pytest.mark.parametrize('content', [b'', b'not a library' * 50, foreign_library],
                         ids=['empty', 'garbage', 'foreign'])
def test_an_extension_that_is_not_ours_is_refused_with_what_to_do(tmp_path, content):
    extension = content() if callable(content) else content
    done = run_copy(tmp_path, 'import laud_mm.ops', extension)
    assert done.returncode == 1
    assert f'ImportError: the compiled operations do not load with torch {torch.__version__}: ' \
        'rebuild it with `pip install' in done.stderr
    done = subprocess.run([sys.executable, '-c', 'import laud_mm.ops'], cwd=tmp_path,
                          env=dict(os.environ, LAUD_MM_OPS='reference', PYTHONPATH=''))
    assert done.returncode == 0


@compiled
def test_an_extension_for_another_torch_is_refused_with_both_versions(monkeypatch):
    built = torch.__version__.split('+')[0]
    monkeypatch.setattr(torch, '__version__', '1.2.3')
    with pytest.raises(ImportError, match=f'built for torch {built}.*this is torch 1.2.3: rebuild'):
        library._load_extension(library.extension_path())


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv('LAUD_MM_OPS', 'fast')
    with pytest.raises(ValueError, match="LAUD_MM_OPS must be one of auto.*got 'fast'"):
        library.load()


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv('LAUD_MM_ISA', 'sse')
    with pytest.raises(ValueError, match="LAUD_MM_ISA must be one of amx, .*got 'sse'"):
        library.load()


@compiled
def test_an_instruction_set_that_the_cpu_lacks_is_said_and_another_runs():
    lacking = [isa for isa in library._ISAS if isa not in offered()]
    if not lacking:
        pytest.skip('this CPU has all of them')
    done = subprocess.run([sys.executable, '-c', 'import laud_mm.ops'], cwd=ROOT, text=True,
                          env=dict(os.environ, LAUD_MM_ISA=lacking[0]), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f'LAUD_MM_ISA={lacking[0]}, which this CPU has not: its kernels run' in done.stderr


def offered():
    """The instruction sets that this CPU runs, found by asking for each."""
    found = set()
    for isa in library._ISAS:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', 'import torch\nfrom laud_mm import ops\n'
             'print(torch.ops.laud_mm_build.cpu_isa())'], cwd=ROOT, text=True,
            env=dict(os.environ, LAUD_MM_ISA=isa), capture_output=True)
        found.add(done.stdout.strip())
    return found


ON_ISA = """
import sys, pytest, torch
from laud_mm import ops
assert torch.ops.laud_mm_build.cpu_isa() == sys.argv[1], torch.ops.laud_mm_build.cpu_isa()
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[2:]]))
"""


@compiled
@pytest.mark.slow
@pytest.mark.parametrize('isa', ['avx512_bf16', 'avx512', 'avx2', 'baseline'])
def test_parity_holds_on_narrower_instruction_sets(isa):
    if isa == 'avx512' and torch.backends.cpu.get_cpu_capability() != 'AVX512':
        pytest.skip('this CPU has no AVX-512')
    if isa == 'avx2' and torch.backends.cpu.get_cpu_capability() not in ('AVX2', 'AVX512'):
        pytest.skip('this CPU has no AVX2')
    if isa == 'avx512_bf16' and not ops.has_dot_products(torch.zeros(1, dtype=torch.bfloat16)):
        pytest.skip('this CPU has no AVX512-BF16')
    names = ('test_dot_products.py',) if isa == 'avx512_bf16' else ('test_parity.py',
                                                                    'test_leaks.py')
    files = [ROOT / 'tests' / 'test_ops' / name for name in names]
    done = subprocess.run([sys.executable, '-c', ON_ISA, isa, *map(str, files)], cwd=ROOT,
                          env=dict(os.environ, LAUD_MM_ISA=isa), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
