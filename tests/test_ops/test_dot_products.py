"""bfloat16 by the CPU's dot products: as exact as float32 sums of the same values."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from laud_mm import ops
from laud_mm.models.dynamic.folding import FoldedConv

pytestmark = pytest.mark.skipif(
    not ops.has_dot_products(torch.zeros(1, dtype=torch.bfloat16)),
    reason='this CPU, or LAUD_MM_ISA, has no dot products of bfloat16')
ROUNDING = 2**-8  # of a result to bfloat16


def maps(*shape):
    return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)


def conv(out, inputs, kernel, groups=1):
    fan_in = inputs // groups * kernel**2
    return (torch.randn(out, inputs // groups, kernel, kernel) / fan_in**0.5).bfloat16(), \
        torch.randn(out).bfloat16()


def assert_rounded(actual, exact):
    """Equal but for the rounding of the result, and of sums in another order."""
    assert actual.dtype == torch.bfloat16
    error = (actual.float() - exact).abs()
    assert bool((error <= ROUNDING * exact.abs() + 1e-4).all()), float(error.max())


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_they_are_exact_but_for_rounding(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    groups = draw(1, 1, 2, 4)
    inputs, outputs = (groups * data.draw(st.integers(1, 40)) for _ in range(2))
    n, h, w, side = (data.draw(st.integers(1, high)) for high in (3, 12, 12, 5))
    x, out = maps(n, inputs, h, w), maps(n, outputs, h, w)
    mask = torch.rand(n, -(-h // side), -(-w // side)) < draw(0.3, 1.0)
    index, count = ops.active_patches(mask)
    positions = ops.halo_positions(index, count, n, h, w, side, 1, 1)
    wide = [t.float() for t in (x, out)]

    weight, bias = conv(outputs, inputs, 1)
    packed = draw(None, ops.pack_conv(weight, bias))
    y = ops.conv1x1_positions(x, *positions, weight, bias, packed=packed)
    exact = ops.conv1x1_positions.reference(wide[0], *positions, weight.float(), bias.float())
    flat = positions[0][:int(positions[1])].long()
    rows = [t.permute(0, 2, 3, 1).reshape(-1, outputs)[flat] for t in (y, exact)]
    assert_rounded(*rows)

    weight, bias = conv(outputs, inputs, 3, groups)
    packed = draw(None, ops.pack_conv(weight, bias, groups))
    rows = ops.conv3x3_patches(x, index, count, weight, bias, side, groups=groups, packed=packed)
    exact = ops.conv3x3_patches.reference(wide[0], index, count, weight.float(), bias.float(),
                                          side, groups=groups)
    inside = ops.patch_positions(index, count, (h, w), side)[1]
    assert_rounded(rows[:len(inside)][inside], exact[:len(inside)][inside])

    rows = torch.randn(len(index), rows.shape[1], inputs).bfloat16()
    weight, bias = conv(outputs, inputs, 1)
    written, exact = out.clone(memory_format=torch.channels_last), wide[1].clone()
    exact = exact.contiguous(memory_format=torch.channels_last)
    ops.conv1x1_add_patches_(written, out, rows, index, count, weight, bias, side,
                             packed=draw(None, ops.pack_conv(weight, bias)))
    ops.conv1x1_add_patches_.reference(exact, wide[1], rows.float(), index, count, weight.float(),
                                       bias.float(), side)
    assert_rounded(written, exact)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_picked_channels_are_exact_but_for_rounding(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    groups, group_width = draw((1, 40), (1, 70), (3, 8), (2, 24), (4, 6), (3, 5))
    width, inputs, size = groups * group_width, data.draw(st.integers(1, 40)), draw(1, 2, 4)
    width -= width % size if groups == 1 else 0
    size = size if width % size == 0 else 1
    n, h, w, side = (data.draw(st.integers(1, high)) for high in (3, 9, 9, 5))
    mask = torch.rand(n, -(-h // side), -(-w // side)) < draw(0.3, 1.0)
    index, count = ops.active_patches(mask)
    channel_index, channel_count = ops.compact(torch.rand(n, width // size) < draw(0, 0.5, 1))
    listed = dict(channel_index=channel_index, channel_count=channel_count, group_size=size)
    off = torch.arange(width) >= size * channel_count[:, None]

    def folded(*conv):
        return FoldedConv(*conv) if data.draw(st.booleans()) else None

    def compare(actual, exact, samples):
        assert_rounded(*(rows.masked_fill(off[samples], 0) for rows in (actual, exact)))

    x, one = maps(n, inputs, h, w), conv(width, inputs, 1)
    prepared = folded(*one)
    y = ops.conv1x1_positions(x, None, None, *one, **listed,
                              packed=prepared and prepared.packed_for(size))
    exact = ops.conv1x1_positions.reference(x.float(), None, None, *(t.float() for t in one),
                                            **listed)
    samples = torch.arange(n).repeat_interleave(h * w)
    compare(*(t.permute(0, 2, 3, 1).flatten(0, 2) for t in (y, exact)), samples)

    two = conv(width, width, 3, groups)
    prepared = folded(*two, groups)
    args = (index, count, *two, side, 1, 1, groups)
    shifts = None
    if groups == 1 and data.draw(st.booleans()):  # sums that bfloat16 holds: they are rounded to it
        shifts = torch.randint(-4, 5, (n, width, 9)).float()
    rows = ops.conv3x3_patches(y, *args, **listed, shifts=shifts,
                               packed=prepared and prepared.packed_for(size))
    args = (index, count, *(t.float() for t in two), side, 1, 1, groups)
    exact = ops.conv3x3_patches.reference(y.float(), *args, **listed, shifts=shifts)
    flat, inside = ops.patch_positions(index, count, (h, w), side)
    samples = (flat // (h * w))[inside]
    compare(rows[:len(flat)][inside], exact[:len(flat)][inside], samples)

    out, three = maps(n, 50, h, w), conv(50, width, 1)
    prepared = folded(*three)
    written, exact = (t.clone(memory_format=torch.channels_last) for t in (out, out.float()))
    ops.conv1x1_add_patches_(written, out, rows, index, count, *three, side, **listed,
                             packed=prepared and prepared.packed_for(size, inputs=True))
    ops.conv1x1_add_patches_.reference(exact, out.float(), rows.float(), index, count,
                                       *(t.float() for t in three), side, **listed)
    assert_rounded(written, exact)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 4))
def test_maskers_decide_in_float(n, channels, side, window):
    x, weight, bias = maps(n, channels, side, side), torch.randn(channels), torch.randn(1)
    mask = ops.patch_mask(x, weight, bias, window)
    assert torch.equal(mask, ops.patch_mask(x.float(), weight, bias, window))
    conv_weight, conv_bias = conv(24, channels, 1)
    y, mask = ops.masker_conv1x1(x, conv_weight, conv_bias, weight, bias, window)
    assert torch.equal(mask, ops.patch_mask(x.float(), weight, bias, window))
    assert_rounded(y, ops.conv1x1_positions.reference(x.float(), None, None, conv_weight.float(),
                                                      conv_bias.float()))
    means = ops.position_means(x)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, x.float().mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_an_odd_channel_reads_no_neighbour():
    x = maps(1, 3, 2, 2)
    x[..., 1, 1] = float('nan')
    weight, bias = conv(5, 3, 1)
    y = ops.conv1x1_positions(x, None, None, weight, bias)
    assert y[..., 1, 1].isnan().all() and y.isnan().sum() == 5


@pytest.mark.parametrize('shape, groups', [((64, 64, 3, 3), 1), ((50, 7, 1, 1), 1),
                                           ((24, 3, 3, 3), 8), ((48, 8, 3, 3), 6)])
def test_packed_weights_have_the_size_that_tracing_sees(shape, groups):
    weight, bias = torch.randn(shape).bfloat16(), torch.randn(shape[0]).bfloat16()
    packed = ops.pack_conv(weight, bias, groups)
    with FakeTensorMode() as mode:
        fake = ops.pack_conv(mode.from_tensor(weight), mode.from_tensor(bias), groups)
    assert (packed.shape, packed.dtype) == (fake.shape, fake.dtype)
