"""Quantised convolutions give the integers of their references, on every instruction set."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm import ops

ROOT = Path(__file__).resolve().parents[2]
compiled = pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')


def integers(*shape, low=0, high=256, dtype=torch.uint8):
    return torch.randint(low, high, shape, dtype=dtype)


def byte_map(*shape):
    return integers(*shape).contiguous(memory_format=torch.channels_last)


def conv(out, inputs, kernel, extreme=False):
    """Weights, and multipliers that leave some results within 0 to 255 and cut others."""
    weight = integers(out, inputs, kernel, kernel, low=-127, high=128, dtype=torch.int8)
    if extreme:
        weight.fill_(-127 if extreme < 0 else 127)
    spread = 127 * 150 * (inputs * kernel**2)**0.5
    multiplier = torch.rand(out) * 200 / spread
    bias = integers(out, low=-20000, high=20000, dtype=torch.int32)
    return weight, bias, multiplier


@compiled
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_convolutions_of_a_block_equal_their_references(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    n, height, width = (data.draw(st.integers(1, high)) for high in (3, 19, 19))
    inputs, middle, outputs = (draw(1, 3, 6, 64, 70, 128) for _ in range(3))
    stride1, stride2, dilation, s = draw(1, 2), draw(1, 2), draw(1, 2), draw(1, 2, 3, 4, 7, 8, 99)
    mid = tuple((size - 1) // stride1 + 1 for size in (height, width))
    out = tuple((size - 1) // stride2 + 1 for size in mid)
    index, count = ops.active_patches(torch.rand(n, *(-(-size // s) for size in out))
                                      < draw(0, 0.3, 0.6, 1))

    def packed(args):
        return ops.pack_int8(*args) if data.draw(st.booleans()) else None

    x, conv1 = byte_map(n, inputs, height, width), conv(middle, inputs, 1, draw(0, 0, 1, -1))
    positions = draw(ops.halo_positions(index, count, n, *mid, s, stride2, dilation), (None, None))
    y = ops.conv1x1_positions_int8(x, *positions, *conv1, stride1, packed(conv1))
    expected = ops.conv1x1_positions_int8.reference(x, *positions, *conv1, stride1)
    flat = torch.arange(n * mid[0] * mid[1])
    flat = flat if positions[0] is None else positions[0][:int(positions[1])].long()
    rows = [m.permute(0, 2, 3, 1).reshape(-1, middle)[flat] for m in (y, expected)]
    assert torch.equal(*rows)

    y, conv2 = byte_map(n, middle, *mid), conv(middle, middle, 3, draw(0, 0, 1, -1))
    args = (y, index, count, *conv2, s, stride2, dilation)
    rows = ops.conv3x3_patches_int8(*args, packed(conv2))
    expected = ops.conv3x3_patches_int8.reference(*args)
    flat, inside = ops.patch_positions(index, count, out, s)
    assert torch.equal(*(r[:len(flat)][inside] for r in (rows, expected)))

    rows, conv3 = integers(*rows.shape), conv(outputs, middle, 1, draw(0, 0, 1, -1))
    identity = draw(byte_map(n, outputs, *out), integers(
        n, outputs, *out, low=-2**15, high=2**15, dtype=torch.int16).contiguous(
            memory_format=torch.channels_last))
    written, same = byte_map(n, outputs, *out), None
    if identity.dtype == torch.uint8 and data.draw(st.booleans()):
        written = identity.clone()
    same = written.clone()
    args = (identity, rows, index, count, *conv3, s)
    ops.conv1x1_add_patches_int8_(written, *args, packed(conv3))
    ops.conv1x1_add_patches_int8_.reference(same, *args)
    assert torch.equal(written, same)

    shortcut = conv(outputs, inputs, 1, draw(0, 0, 1, -1))
    found = ops.shortcut_int8(x, *shortcut, stride1, packed(shortcut))
    expected = ops.shortcut_int8.reference(x, *shortcut, stride1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert torch.equal(found[1].int(), found[0].int().clamp(0, 255))


@compiled
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_what_surrounds_convolutions_equals_its_reference(data):
    n, channels, height, width = (data.draw(st.integers(1, high)) for high in (3, 150, 20, 20))
    x, window = byte_map(n, channels, height, width), data.draw(st.sampled_from((1, 2, 3, 8, 99)))
    weight, bias = torch.randn(channels), torch.randn(1)
    mask = ops.patch_mask_int8(x, weight, bias, window)
    assert torch.equal(mask, ops.patch_mask_int8.reference(x, weight, bias, window))
    assert torch.equal(mask, ops.patch_mask.reference(x.double(), weight.double(), bias.double(),
                                                      window))
    values = torch.randn(n, channels, height, width) * 100
    values[..., 0, 0] = data.draw(st.sampled_from((float('nan'), float('inf'), -float('inf'), 7)))
    values = values.contiguous(memory_format=torch.channels_last)
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16)))
    quantized = ops.quantize(values.to(dtype), 0.37)
    assert torch.equal(quantized, ops.quantize.reference(values.to(dtype), 0.37))
    assert torch.equal(ops.dequantize(quantized, 0.37), ops.dequantize.reference(quantized, 0.37))
    within = (values > 0) & (values < 254 * 0.37)
    assert ((quantized * 0.37 - values.to(dtype)).abs()[within] <= 0.186).all()


@compiled
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_first_convolution_equals_its_reference(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    n, channels, height, width = draw(0, 1, 2), draw(1, 3, 4), draw(1, 6, 33, 70), draw(1, 9, 40)
    kernel, stride, pool, zero = draw(1, 3, 7), draw(1, 2), draw(True, False), draw(0, 114, 255)
    weight, bias, multiplier = args = conv(draw(1, 24, 64, 70), channels, kernel)
    x = torch.randn(n, channels, height, width)
    x[..., 0, 0] = draw(float('nan'), float('inf'), -float('inf'), 1)
    x = draw(x, x.contiguous(memory_format=torch.channels_last), x.double(),
             x.transpose(2, 3).contiguous().transpose(2, 3))
    packed = draw(None, ops.pack_stem_int8(*args))
    y = ops.stem_int8(x, *args, 0.03, zero, stride, pool, packed)
    expected = ops.stem_int8.reference(x, *args, 0.03, zero, stride, pool)
    assert torch.equal(y, expected) and y.dtype == torch.uint8
    assert not n or y.is_contiguous(memory_format=torch.channels_last)


def test_quantised_convolutions_are_near_to_those_of_what_they_stand_for():
    """The references against float arithmetic on the values that the integers stand for."""
    x, scale = byte_map(2, 8, 6, 6), 0.02
    weight, weight_scale = integers(16, 8, 3, 3, low=-127, high=128, dtype=torch.int8), \
        torch.rand(16) * 0.01 + 0.005
    bias, out_scale = torch.randn(16), 0.1
    index, count = ops.active_patches(torch.ones(2, 1, 1))
    multiplier = weight_scale * scale / out_scale
    rows = ops.conv3x3_patches_int8.reference(
        x, index, count, weight, (bias / (weight_scale * scale)).round().int(), multiplier, 6)
    exact = torch.relu(torch.nn.functional.conv2d(
        x * scale, weight * weight_scale[:, None, None, None], bias, padding=1))
    exact = exact.permute(0, 2, 3, 1).flatten(1, 2).clamp(max=255 * out_scale)
    assert ((rows * out_scale - exact).abs() <= 0.51 * out_scale).all()
    assert 0.1 < (rows > 0).float().mean() and (rows < 255).float().mean() > 0.5


@compiled
def test_bad_arguments_name_the_argument_and_its_value():
    x, (weight, bias, multiplier) = byte_map(2, 8, 5, 5), conv(16, 8, 1)
    good = dict(x=x, index=None, count=None, weight=weight, bias=bias, multiplier=multiplier)
    for change, message in [
            (dict(x=x.float()), 'x must be uint8, got'), (dict(x=x.contiguous()), 'channels-last'),
            (dict(weight=weight.int()), 'weight must be int8'), (dict(stride=0), 'stride'),
            (dict(bias=bias.float()), 'bias must be int32'), (dict(bias=bias[:3]), 'bias'),
            (dict(multiplier=multiplier + 1), 'multiplier must be from 0 to below 1, got 1.'),
            (dict(packed=weight), 'packed must hold'),
            (dict(index=torch.tensor([50], dtype=torch.int32),
                  count=torch.tensor([1], dtype=torch.int32)), 'got 50')]:
        with pytest.raises(RuntimeError, match=message):
            ops.conv1x1_positions_int8(**{**good, **change})
    with pytest.raises(RuntimeError, match='identity must be uint8 or int16, got'):
        ops.conv1x1_add_patches_int8_(
            byte_map(1, 16, 2, 2), torch.zeros(1, 16, 2, 2), integers(1, 4, 8),
            *ops.active_patches(torch.ones(1, 1, 1)), weight, bias, multiplier, 2)
    with pytest.raises(RuntimeError, match='scale must be above 0, got 0'):
        ops.quantize(x.float(), 0.0)


ON_ISA = """
import sys, pytest, torch
from laud_mm import ops
assert torch.ops.laud_mm_build.int8_isa() == sys.argv[1], torch.ops.laud_mm_build.int8_isa()
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-m', 'not slow', *sys.argv[2:]]))
"""


@compiled
@pytest.mark.slow
@pytest.mark.parametrize('asked, isa', [('avx512_bf16', 'avx512_vnni'), ('avx512', 'plain')])
def test_other_instruction_sets_give_the_same_integers(asked, isa):
    if isa != 'plain' and torch.ops.laud_mm_build.int8_isa() == 'plain':
        pytest.skip('this CPU has no AVX512-VNNI')
    done = subprocess.run([sys.executable, '-c', ON_ISA, isa, str(Path(__file__))], cwd=ROOT,
                          env=dict(os.environ, LAUD_MM_ISA=asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
