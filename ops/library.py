"""Registers the operations with torch and loads their compiled kernels.

Every operation has a schema and a plain-PyTorch reference. The reference serves
wherever no kernel was built for a device, and wherever gradients are recorded.
`LAUD_MM_OPS=reference` uses references only; `LAUD_MM_OPS=compiled` insists on
the extension.
"""
import functools
import importlib.machinery
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

_FOLDER = Path(__file__).resolve().parent
_LIBRARY = torch.library.Library('laud_mm', 'DEF')
_BACKENDS = ('auto', 'reference', 'compiled')
_ISAS = ('amx', 'avx512_bf16', 'avx512', 'avx2', 'baseline')
_REBUILD = 'rebuild it with `pip install --no-build-isolation --force-reinstall --no-deps` ' \
    'on the checkout, or run with LAUD_MM_OPS=reference'
_state = SimpleNamespace(loaded=False, references=False)
# Operations by name, for tests and benchmarks that go over all of them.
OPERATIONS = {}


def op(schema, fake=None):
    """Register a function as the reference of an operation.

    Args:
        schema (str): Its torch schema without the name; the function's name is used.
            The first argument of an operation whose name ends in '_' is written to.
        fake (Callable, optional): Makes the empty result from fake arguments;
            None for operations that return nothing.

    Returns:
        Callable: Decorator. The operation returns what the schema says, or its
        first argument where that is nothing; `.reference` is the plain function.
    """
    def register(reference):
        name = reference.__name__
        _LIBRARY.define(name + schema)
        torch.library.register_fake(f'laud_mm::{name}', fake or (lambda *_, **__: None),
                                    lib=_LIBRARY)
        kernel = getattr(torch.ops.laud_mm, name).default
        in_place = name.endswith('_')

        @functools.wraps(reference)
        def run(*args, **kwargs):
            call = reference if _state.references or not _kernels_compute(args, kwargs) else kernel
            if torch.is_grad_enabled() and any(
                    isinstance(a, torch.Tensor) and a.requires_grad
                    for a in (*args, *kwargs.values())):
                call = reference
                if in_place:
                    args = (args[0].clone(), *args[1:])
            result = call(*args, **kwargs)
            return args[0] if in_place else result

        run.reference = reference
        OPERATIONS[name] = run
        return run
    return register


def extension_path():
    """The compiled extension's file, or None."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = _FOLDER / f'_C{suffix}'
        if path.exists():
            return path
    return None


def load():
    """Load the extension and fill what it does not hold with references.

    Raises:
        ValueError: If LAUD_MM_OPS is none of 'auto', 'reference' and 'compiled', or LAUD_MM_ISA
            no instruction set that there are kernels for.
        ImportError: If the extension was built for another torch or compiler, or
            LAUD_MM_OPS=compiled and there is none.
    """
    backend = os.environ.get('LAUD_MM_OPS', 'auto')
    if backend not in _BACKENDS:
        raise ValueError(f'LAUD_MM_OPS must be one of {", ".join(_BACKENDS)}, got {backend!r}')
    isa = os.environ.get('LAUD_MM_ISA')
    if isa is not None and isa not in _ISAS:
        raise ValueError(f'LAUD_MM_ISA must be one of {", ".join(_ISAS)}, got {isa!r}')
    path = extension_path()
    if backend != 'reference' and path is not None:
        _load_extension(path)
        _state.loaded = True
        found = torch.ops.laud_mm_build.cpu_isa()
        if isa not in (None, found):
            warnings.warn(f'LAUD_MM_ISA={isa}, which this CPU has not: its kernels run {found}',
                          stacklevel=2)
    elif backend == 'compiled':
        raise ImportError('LAUD_MM_OPS=compiled, but the compiled operations are missing: '
                          + _REBUILD)
    elif backend == 'auto':
        warnings.warn('laud_mm runs without its compiled operations, on slower references: '
                      + _REBUILD, stacklevel=2)
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name, operation in OPERATIONS.items():
        for key in ('CPU', 'CUDA'):
            if not has_kernel(f'laud_mm::{name}', key):
                _LIBRARY.impl(name, operation.reference, key)


def _load_extension(path):
    try:
        torch.ops.load_library(path)
        built = torch.ops.laud_mm_build.torch_version()
    except (OSError, RuntimeError, AttributeError) as error:
        raise ImportError(f'the compiled operations do not load with torch {torch.__version__}: '
                          f'{_REBUILD} ({error})') from error
    if built.split('+')[0] != torch.__version__.split('+')[0]:
        raise ImportError(f'the compiled operations were built for torch {built}, but this is '
                          f'torch {torch.__version__}: {_REBUILD}')


def _kernels_compute(args, kwargs):
    """Whether kernels, where there are any, compute in the types of an operation's tensors."""
    return all(_computes_in(a.device.type, a.dtype) for a in (*args, *kwargs.values())
               if isinstance(a, torch.Tensor))


def _computes_in(device, dtype):
    return device != 'cuda' or dtype != torch.float64


def has_kernel(device, dtype=None):
    """Whether compiled kernels serve the operations, not the references.

    Args:
        device (str | torch.device): Where.
        dtype (torch.dtype, optional): Of the maps; default: what all kernels compute in.
    """
    device = torch.device(device).type
    if _state.references or not _state.loaded or not _computes_in(device, dtype):
        return False
    return device == 'cpu' or torch.ops.laud_mm_build.cuda()


def has_dot_products(x):
    """Whether the kernels multiply a tensor's half type as it is, instead of widening it."""
    return (x.dtype == torch.bfloat16 and x.device.type == 'cpu' and has_kernel('cpu')
            and torch.ops.laud_mm_build.cpu_isa() in ('avx512_bf16', 'amx'))


@contextmanager
def use_references():
    """Run the references for a while, for example to count their FLOPs."""
    previous, _state.references = _state.references, True
    try:
        yield
    finally:
        _state.references = previous
