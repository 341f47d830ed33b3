"""The convolution in Triton equals the reference in its interpreter, and compiles for GPUs."""
import os
import subprocess
import sys

import pytest

pytest.importorskip('triton')

# Triton reads whether it interprets when it is imported.
PARITY = """
import torch
from laud_mm import ops
from laud_mm.ops.triton_patches import conv3x3_patches
torch.manual_seed(0)
for n, c, out, side, s, stride, dilation, rate in (
        (2, 24, 72, (9, 7), 4, 1, 1, .5), (3, 40, 16, (8, 10), 3, 2, 1, .5),
        (2, 16, 40, (7, 7), 99, 1, 2, .5), (1, 8, 8, (5, 5), 1, 1, 1, 1.),
        (2, 8, 8, (6, 6), 2, 1, 1, 0.)):
    x = torch.randn(n, c, *side).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(out, c, 3, 3) / c, torch.randn(out)
    size = tuple((m - 1) // stride + 1 for m in side)
    grid = tuple(-(-m // min(s, m)) for m in size)
    index, count = ops.active_patches(torch.rand(n, *grid) < rate)
    index[int(count):] = 2**30  # may not be read
    args = index, count, weight, bias, s, stride, dilation
    flat, inside = ops.patch_positions(index, count, size, s)
    actual = conv3x3_patches(x, *args)[:len(flat)][inside]
    expected = ops.conv3x3_patches.reference(x.double(), index, count, weight.double(),
                                             bias.double(), *args[4:])[:len(flat)][inside]
    assert (actual - expected).abs().max() < 1e-4 if len(actual) else rate == 0
print('equal')
"""
COMPILES = """
import triton
from triton.backends.compiler import GPUTarget
from laud_mm.ops.triton_patches import TILES, conv3x3_kernel
names = conv3x3_kernel.arg_names
pointers = dict(y='*fp16', index='*i32', count='*i32', weight='*fp16', bias='*fp16', rows='*fp16')
rows, columns, inputs, warps, stages = TILES[0]
tile = dict(ROWS=rows, COLUMNS=columns, INPUTS=inputs, inputs=256)
signature = {name: 'constexpr' if name in tile else pointers.get(name, 'i32') for name in names}
source = triton.compiler.ASTSource(conv3x3_kernel, signature, tile)
made = triton.compile(source, GPUTarget('cuda', 90, 32),
                      options=dict(num_warps=warps, num_stages=stages))
assert 'wgmma' in made.asm['ptx'] and len(made.asm['cubin']) > 1000
print('compiled')
"""


def run(code, **env):
    done = subprocess.run([sys.executable, '-c', code], env=dict(os.environ, **env),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_equals_the_reference_in_the_interpreter():
    assert 'equal' in run(PARITY, TRITON_INTERPRET='1')


@pytest.mark.slow
def test_it_compiles_for_a_hopper_gpu(tmp_path):
    assert 'compiled' in run(COMPILES, TRITON_CACHE_DIR=str(tmp_path))
