"""The CUDA kernels on a CPU: builds them with an emulated device and calls their launchers."""
import ctypes
import shutil
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[2] / 'ops' / 'csrc' / 'cuda'
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
COMPILER = shutil.which('g++')
GUARD = 64  # elements around a guarded tensor


class EmulatedDevice:
    """The compiled kernels, and the device they believe to run on."""

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))
        self.library.bank_conflicts.restype = self.library.loads.restype = ctypes.c_int64
        self.library.tiles.restype = ctypes.c_int64

    def set(self, multiprocessors=1, shared_bytes=227 << 10, descending=False):
        """Choose a device, and the order in which threads take turns."""
        self.library.set_device(*map(ctypes.c_int64, (multiprocessors, shared_bytes, descending)))

    def run(self, name, *arguments):
        """Call a launcher with tensors (None: null) and numbers; the last may be left out."""
        values = [a.data_ptr() if isinstance(a, torch.Tensor) else int(a or 0)
                  for a in (*arguments, *[None] * 8)]
        assert getattr(self.library, name)((ctypes.c_int64 * len(values))(*values)) == 0

    @property
    def bank_conflicts(self):
        """Shared memory accesses that had to wait for one another since `set`."""
        return self.library.bank_conflicts()

    @property
    def loads(self):
        """Loads through the read-only cache in the last `run_compact`."""
        return self.library.loads()


def build(folder):
    """Compile the kernels for a CPU; undefined behaviour in them ends the program."""
    target = folder / 'emulated_kernels.so'
    subprocess.run(
        [COMPILER, '-std=c++17', '-O1', '-shared', '-fPIC', '-fsanitize=undefined',
         '-fno-sanitize-recover=undefined', '-I', HERE / 'include',
         '-include', HERE / 'emulated_device.h', '-x', 'c++',
         *sorted(KERNELS.glob('*.cu')), KERNELS / 'convolutions.cpp', HERE / 'kernels.cpp',
         '-o', target], check=True)
    return EmulatedDevice(target)


def guarded(tensor, shift=0):
    """A copy between NaNs (or -1), so that values read beyond it show in results.

    Args:
        tensor (Tensor): What to copy.
        shift (int): Elements by which its address misses a multiple of 16 bytes.
    """
    fill = float('nan') if tensor.is_floating_point() else -1
    buffer = torch.full((tensor.numel() + 2 * GUARD + shift,), fill, dtype=tensor.dtype)
    buffer[GUARD + shift:GUARD + shift + tensor.numel()] = tensor.flatten()
    copy = buffer[GUARD + shift:GUARD + shift + tensor.numel()].view(tensor.shape)
    copy.buffer, copy.shift = buffer, shift
    return copy


def is_intact(tensor):
    """Whether nothing was written around a `guarded` tensor."""
    around = torch.cat([tensor.buffer[:GUARD + tensor.shift], tensor.buffer[-GUARD:]])
    return bool((around.isnan() if around.is_floating_point() else around == -1).all())
