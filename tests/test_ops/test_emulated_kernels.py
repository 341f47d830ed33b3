"""The CUDA kernels equal the references, run on a CPU by an emulation of the device.

This holds their index arithmetic, fragment layouts, pipelines and barriers; what it cannot
hold is that the device's instructions do what the emulation says.
"""
import mmap

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laud_mm import ops
from laud_mm.profiling.gpu_checks import tiles_of

from .emulation import TYPES, guarded, is_intact

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
NAN = float('nan')
MANY = settings(max_examples=100, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                       HealthCheck.data_too_large])
DTYPES = pytest.mark.parametrize('dtype', TYPES, ids=str)


def drawn(data, *values):
    return data.draw(st.sampled_from(values))


def set_any(device, data):
    device.set(drawn(data, 1, 2, 40), drawn(data, 99 << 10, 227 << 10), drawn(data, False, True))


def random(*shape, dtype, scale=1.0):
    return (torch.randn(*shape) * scale).to(dtype)


def as_map(rows, n, height, width):
    """Rows (N * H * W, C) as a channels-last map in float64."""
    return rows.double().view(n, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def as_rows(x):
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def room_for_pieces(units, size, side, channels):
    """Of NaN, which stays where a unit has less."""
    return guarded(torch.full((units, ops.sum_pieces(size, side), channels), NAN))


def patch_sums(rows, n, size, side):
    """What each patch of a map of rows adds up to, in float64: (patches, C)."""
    extent = [min(side, m) for m in size]
    sums = torch.nn.functional.avg_pool2d(as_map(rows, n, *size), extent, ceil_mode=True,
                                          divisor_override=1)
    return as_rows(sums)


def assert_close(actual, expected, dtype):
    assert actual.shape == expected.shape
    if actual.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= TOLERANCE[dtype] * max(1, expected.abs().max().item()), error


class Conv:
    """Random weights of a convolution, as the kernels and as the references take them."""

    def __init__(self, inputs, outputs, kernel, groups, dtype, shift):
        depth = inputs // groups * kernel**2
        self.weight = guarded(random(outputs, kernel, kernel, inputs // groups, dtype=dtype,
                                     scale=max(depth, 1)**-0.5), shift)
        self.bias = guarded(random(outputs, dtype=dtype))
        self.arguments = (TYPES[dtype], self.weight, self.bias, inputs, outputs, groups)
        self.reference = self.weight.double().permute(0, 3, 1, 2), self.bias.double()


class Channels:
    """Random channels of each sample, or none."""

    def __init__(self, data, samples, width, picks):
        sizes = [g for g in (1, 2, 4, 8, 16) if width % g == 0]
        self.mask, self.arguments, self.reference = None, (None, None, 0, 1), {}
        if picks:
            size = drawn(data, *sizes)
            mask = torch.rand(samples, width // size) < drawn(data, 0, 0.5, 1)
            self.index, self.count = ops.compact.reference(mask)
            self.mask = torch.arange(width) < self.count[:, None] * size
            self.arguments = (self.index, self.count, width // size, size)
            self.reference = dict(channel_index=self.index, channel_count=self.count,
                                  group_size=size)

    def poison(self, rows, samples):
        """NaN where compact rows hold nothing."""
        return rows if self.mask is None else rows.masked_fill(~self.mask[samples], NAN)


@MANY
@given(st.data())
def test_conv1x1_positions(device, data):
    dtype, n = drawn(data, *TYPES), drawn(data, 0, 1, 2, 3)
    height, width = (data.draw(st.integers(1, 12)) for _ in range(2))
    inputs, outputs = drawn(data, 3, 8, 40, 72), drawn(data, 5, 16, 32, 64, 136, 200)
    stride, relu = drawn(data, 1, 2), drawn(data, False, True)
    shift = drawn(data, 0, 0, 1)
    conv = Conv(inputs, outputs, 1, 1, dtype, shift)
    x = guarded(random(n * height * width, inputs, dtype=dtype), drawn(data, 0, 0, 1))
    size = tuple((m - 1) // stride + 1 for m in (height, width))
    s, positions = drawn(data, 1, 2, 3, 99), n * size[0] * size[1]
    index, count, units = None, None, positions
    listed = torch.arange(positions)
    if drawn(data, True, False):
        index, count = ops.active_patches(
            torch.rand(n, *(-(-m // s) for m in size)) < drawn(data, 0, 0.5, 1))
        flat, inside = ops.patch_positions(index, count, size, s)
        listed, units = flat[inside], len(index)
        index = guarded(index)
    else:
        s = 1
    channels = Channels(data, n, outputs, drawn(data, True, False))
    out = guarded(torch.full((positions, outputs), NAN, dtype=dtype), shift)
    set_any(device, data)
    device.run('run_conv1x1_positions', *conv.arguments, n, height, width, s, stride, relu,
               index, count, units, *channels.arguments, x, None, out)
    expected = ops.conv1x1_positions.reference(
        as_map(x, n, height, width), index, count, *conv.reference, stride, relu,
        **channels.reference, granularity=s)
    expected = channels.poison(as_rows(expected)[listed], listed // (size[0] * size[1]))
    assert torch.equal(out[listed].isnan(), expected.isnan())
    assert_close(out[listed].nan_to_num(), expected.nan_to_num(), dtype)
    unlisted = torch.ones(positions, dtype=torch.bool)
    unlisted[listed] = False
    assert out[unlisted].isnan().all() and is_intact(out)
    assert device.bank_conflicts == 0


@MANY
@given(st.data())
def test_conv3x3_patches(device, data):
    dtype, n = drawn(data, *TYPES), drawn(data, 1, 2, 3)
    height, width = (data.draw(st.integers(1, 10)) for _ in range(2))
    stride, dilation, s = drawn(data, 1, 2), drawn(data, 1, 2, 3), drawn(data, 1, 2, 3, 7, 99)
    picks = drawn(data, True, False)
    inputs = drawn(data, 8, 16, 20, 48)
    outputs = inputs if picks else drawn(data, 8, 36, 136)
    groups = 1 if picks else drawn(data, *(g for g in (1, 2, 4) if not (inputs % g or outputs % g)))
    conv = Conv(inputs, outputs, 3, groups, dtype, drawn(data, 0, 0, 1))
    channels = Channels(data, n, inputs, picks)
    size = tuple((m - 1) // stride + 1 for m in (height, width))
    index, count = ops.active_patches(
        torch.rand(n, *(-(-m // s) for m in size)) < drawn(data, 0, 0.4, 1))
    y = random(n * height * width, inputs, dtype=dtype)
    # Nothing but the halo of the listed patches may be read.
    halo, found = ops.halo_positions.reference(index, count, n, height, width, s, stride, dilation)
    unread = torch.ones(len(y), dtype=torch.bool)
    unread[halo[:int(found)].long()] = False
    poisoned = channels.poison(y.masked_fill(unread[:, None], NAN),
                               torch.arange(len(y)) // (height * width))
    area = min(s, size[0]) * min(s, size[1])
    out = guarded(torch.full((len(index), area, outputs), NAN, dtype=dtype))
    set_any(device, data)
    device.run('run_conv3x3_patches', *conv.arguments, n, height, width, s, stride, dilation,
               guarded(index), count, len(index), *channels.arguments,
               guarded(poisoned, drawn(data, 0, 0, 1)), None, out)
    expected = ops.conv3x3_patches.reference(
        as_map(y, n, height, width), index, count, *conv.reference, s, stride, dilation, groups,
        **channels.reference)
    flat, inside = ops.patch_positions(index, count, size, s)
    expected = expected[:len(flat)][inside]
    expected = channels.poison(expected, flat[inside] // (size[0] * size[1]))
    actual = out[:len(flat)][inside]
    assert torch.equal(actual.isnan(), expected.isnan())
    assert_close(actual.nan_to_num(), expected.nan_to_num(), dtype)
    assert out[len(flat):].isnan().all() and is_intact(out)
    assert device.bank_conflicts == 0


@MANY
@given(st.data())
def test_conv1x1_add_patches(device, data):
    dtype, n = drawn(data, *TYPES), drawn(data, 1, 2, 3)
    size = tuple(data.draw(st.integers(1, 10)) for _ in range(2))
    s, inputs, outputs = (drawn(data, 1, 2, 3, 7, 99), drawn(data, 0, 8, 20, 48),
                          drawn(data, 10, 64, 136, 200))
    conv = Conv(inputs, outputs, 1, 1, dtype, drawn(data, 0, 0, 1))
    channels = Channels(data, n, inputs, inputs > 0 and drawn(data, True, False))
    index, count = ops.active_patches(
        torch.rand(n, *(-(-m // s) for m in size)) < drawn(data, 0, 0.4, 1))
    flat, inside = ops.patch_positions(index, count, size, s)
    area = min(s, size[0]) * min(s, size[1])
    rows = random(len(index), area, inputs, dtype=dtype)
    poisoned = rows.clone()
    poisoned[len(flat):] = NAN
    poisoned[:len(flat)][~inside] = NAN
    poisoned[:len(flat)] = channels.poison(poisoned[:len(flat)], flat // (size[0] * size[1]))
    identity = guarded(random(n * size[0] * size[1], outputs, dtype=dtype))
    expected = as_map(identity, n, *size).contiguous(memory_format=torch.channels_last)
    out = identity if drawn(data, True, False) else guarded(identity, drawn(data, 0, 1))
    ops.conv1x1_add_patches_.reference(expected, expected.clone(), rows.double(), index, count,
                                       *conv.reference, s, **channels.reference)
    pieces = None
    if channels.mask is None and drawn(data, True, False):
        pieces = room_for_pieces(len(index), size, s, outputs)
    set_any(device, data)
    device.run('run_conv1x1_add_patches', *conv.arguments, n, *size, s, guarded(index), count,
               len(index), *channels.arguments, guarded(poisoned, drawn(data, 0, 0, 1)), identity,
               out, False, None, None, None, pieces)
    assert_close(out, as_rows(expected), dtype)
    if pieces is not None:
        exact = patch_sums(out, n, size, s)[index[:int(count)].long()]
        assert_close(pieces[:len(exact)].nansum(1), exact, torch.float32)
        assert pieces[len(exact):].isnan().all() and is_intact(pieces)
    assert is_intact(out) and device.bank_conflicts == 0


@MANY
@given(st.data())
def test_shortcuts_rectify_what_gets_no_more_and_add_up_patches(device, data):
    dtype, n, stride = drawn(data, *TYPES), drawn(data, 1, 2, 3), drawn(data, 1, 2)
    height, width = (data.draw(st.integers(1, 20)) for _ in range(2))
    inputs, outputs, s = drawn(data, 8, 40), drawn(data, 5, 64, 200), drawn(data, 1, 2, 3, 7, 99)
    conv = Conv(inputs, outputs, 1, 1, dtype, drawn(data, 0, 0, 1))
    x = guarded(random(n * height * width, inputs, dtype=dtype))
    size = tuple((m - 1) // stride + 1 for m in (height, width))
    active = torch.rand(n, *(-(-m // s) for m in size)) < drawn(data, 0, 0.5, 1)
    out = guarded(torch.full((n * size[0] * size[1], outputs), NAN, dtype=dtype))
    pieces = None
    if drawn(data, True, False):
        pieces = room_for_pieces(active.numel(), size, s, outputs)
    set_any(device, data)
    device.run('run_conv1x1_positions', *conv.arguments, n, height, width, s, stride, False, None,
               None, active.numel(), None, None, 0, 1, x, None, out, False, None, None, active,
               pieces)
    expected, _ = ops.conv1x1_shortcut.reference(as_map(x, n, height, width), active,
                                                 *conv.reference, stride, s, False)
    assert_close(out, as_rows(expected), dtype)
    assert is_intact(out) and device.bank_conflicts == 0
    if pieces is not None:
        assert_close(pieces.nansum(1), patch_sums(out, n, size, s), torch.float32)
        assert is_intact(pieces)


@pytest.mark.parametrize('descending', [False, True])
@DTYPES
def test_every_tile(device, dtype, descending):
    n, size, inputs, s, seen = 2, (16, 16), 24, 4, set()
    index, count = ops.active_patches(torch.rand(n, 4, 4) < 0.7)
    rows = guarded(random(len(index), s * s, inputs, dtype=dtype))
    for outputs in (24, 64, 256):
        conv = Conv(inputs, outputs, 1, 1, dtype, 0)
        identity = guarded(random(n * 256, outputs, dtype=dtype))
        expected = as_map(identity, n, *size).contiguous(memory_format=torch.channels_last)
        ops.conv1x1_add_patches_.reference(expected, expected.clone(), rows.double(), index, count,
                                           *conv.reference, s)
        first = None
        for multiprocessors in (1, 8, 12, 100):
            seen.add(torch.ops.laud_mm_build.tile(len(index) * s * s, outputs, 1, multiprocessors,
                                                  dtype.itemsize == 2))
            out, pieces = guarded(identity), room_for_pieces(len(index), size, s, outputs)
            device.set(multiprocessors, descending=descending)
            device.run('run_conv1x1_add_patches', *conv.arguments, n, *size, s, index, count,
                       len(index), None, None, 0, 1, rows, out, out, False, None, None, None,
                       pieces)
            assert_close(out, as_rows(expected), dtype)
            assert is_intact(out) and is_intact(pieces) and device.bank_conflicts == 0
            # Whatever the tile, rows are added up in the same order: the same to the last bit.
            first = pieces if first is None else first
            assert torch.equal(pieces.nan_to_num(-1.0), first.nan_to_num(-1.0))
    assert seen == set(tiles_of(dtype))


@MANY
@given(st.data())
def test_maskers_that_know_what_maps_add_up_to(device, data):
    n, channels = drawn(data, 0, 1, 3, 9), drawn(data, 3, 70, 600)
    height, width = (data.draw(st.integers(1, 14)) for _ in range(2))
    area, k = height * width, ops.sum_pieces((height, width), ops.WHOLE)
    # Bands that a sample's rows lie in; none of the pieces behind them.
    first, last = (torch.arange(n + i) * area for i in (0, 1))
    bands = (last[1:] - 1) // 64 - first // 64 + 1
    held = (torch.arange(k) < bands[:, None])[..., None]
    index, count = ops.active_patches(torch.rand(n, 1, 1) < drawn(data, 0, 0.5, 1))
    index[int(count):] = 2**30
    listed, whole = (torch.randn(n, k, channels).masked_fill(~held, NAN) for _ in range(2))
    whole = whole if drawn(data, True, False) else None
    sums, weight, bias = torch.randn(n, channels), torch.randn(channels), torch.randn(1)
    total, mask = guarded(torch.full((n, channels), NAN)), guarded(
        torch.full((n, 1, 1), 7, dtype=torch.int8))
    set_any(device, data)
    device.run('run_sums_mask', n, height, width, 99, guarded(index), count, n, guarded(sums),
               whole, listed, total, channels, guarded(weight), bias, mask)
    wide = [t if t is None else t.nan_to_num(0.0).double() for t in (sums, whole, listed)]
    near = [ops.sums_mask.reference(*wide, index, count, weight.double(), bias.double() + d, area)
            for d in (-1e-4, 1e-4)]
    assert_close(total, near[0][1], torch.float32)
    sure = near[0][0] == near[1][0]
    assert torch.equal(mask.bool()[sure], near[0][0][sure])
    assert set(mask.flatten().tolist()) <= {0, 1} and is_intact(mask) and is_intact(total)


@MANY
@given(st.data())
def test_pools_of_stems(device, data):
    dtype, n, channels = drawn(data, *TYPES), drawn(data, 0, 1, 3), drawn(data, 3, 8, 40)
    height, width = (data.draw(st.integers(1, 12)) for _ in range(2))
    side, stride = drawn(data, (3, 2), (1, 1))
    x, bias = random(n * height * width, channels, dtype=dtype), random(channels, dtype=dtype)
    if len(x):
        x[0, 0] = NAN
    maps = guarded(x, drawn(data, 0, 1))
    size = tuple((m - 1) // stride + 1 for m in (height, width))
    out = maps if side == 1 else guarded(
        torch.full((n * size[0] * size[1], channels), NAN, dtype=dtype))
    set_any(device, data)
    device.run('run_stem_pool', TYPES[dtype], maps, guarded(bias), out, n, height, width, channels,
               side, stride)
    if n:
        added = as_map(x, n, height, width) + bias.double().view(-1, 1, 1)
        expected = torch.nn.functional.max_pool2d(added.relu(), side, stride, side // 2)
        assert torch.equal(out.isnan(), as_rows(expected).isnan())
        assert_close(out.nan_to_num(), as_rows(expected).nan_to_num(), dtype)
    assert is_intact(out)


@MANY
@given(st.data())
def test_maskers(device, data):
    dtype, n = drawn(data, *TYPES), drawn(data, 0, 1, 3)
    height, width = (data.draw(st.integers(1, 20)) for _ in range(2))
    channels, window = drawn(data, 3, 16, 70, 300), drawn(data, 1, 2, 3, 7, 64)
    x = guarded(random(n * height * width, channels, dtype=dtype), drawn(data, 0, 1))
    weight, bias = guarded(torch.randn(channels)), torch.randn(1)
    grid = (n, *(-(-m // window) for m in (height, width)))
    logits = guarded(torch.full((len(x),), NAN))
    mask = guarded(torch.full(grid, 7, dtype=torch.int8))
    set_any(device, data)
    device.run('run_patch_mask', TYPES[dtype], x, n, height, width, channels, weight, bias, window,
               logits, mask)
    exact = x.double() @ weight.double()
    assert_close(logits, exact, torch.float32)
    expected = ops.patch_mask.reference(as_map(x, n, height, width), weight.double(),
                                        bias.double(), window)
    # Of means next to the threshold rounding decides.
    means = as_map(exact[:, None], n, height, width)
    near = torch.stack([ops.patch_mask.reference(means + d, torch.ones(1).double(),
                                                 bias.double(), window)
                        for d in (-1e-4, 1e-4)])
    sure = near[0] == near[1]
    assert torch.equal(mask.bool()[sure], expected[sure])
    assert set(mask.flatten().tolist()) <= {0, 1} and is_intact(mask)

    means = guarded(torch.full((n, channels), NAN))
    device.run('run_position_means', TYPES[dtype], x, n, height, width, channels, means)
    if n:
        assert_close(means, as_map(x, n, height, width).mean((2, 3)), torch.float32)
    assert is_intact(means)


@pytest.mark.parametrize('descending', [False, True])
@DTYPES
def test_the_masker_in_the_first_convolution(device, dtype, descending):
    for multiprocessors, outputs in ((40, 40), (1, 64), (1, 200), (40, 24)):
        n, height, width, inputs = 2, 9, 12, 40
        conv = Conv(inputs, outputs, 1, 1, dtype, 0)
        x, weight = guarded(random(n * height * width, inputs, dtype=dtype)), torch.randn(inputs)
        out = guarded(torch.full((len(x), outputs), NAN, dtype=dtype))
        logits = guarded(torch.full((len(x),), NAN))
        device.set(multiprocessors, descending=descending)
        device.run('run_conv1x1_positions', *conv.arguments, n, height, width, 1, 1, True, None,
                   None, len(x), None, None, 0, 1, x, None, out, False, weight, logits)
        expected = ops.conv1x1_positions.reference(as_map(x, n, height, width), None, None,
                                                   *conv.reference)
        assert_close(out, as_rows(expected), dtype)
        assert_close(logits, x.double() @ weight.double(), torch.float32)
        assert is_intact(out) and is_intact(logits)


def test_tf32_is_as_exact_as_its_ten_bits(device):
    conv = Conv(64, 64, 1, 1, torch.float32, 0)
    x, out = guarded(torch.randn(36, 64)), guarded(torch.zeros(36, 64))
    device.set()
    errors = []
    expected = as_rows(ops.conv1x1_positions.reference(as_map(x, 1, 6, 6), None, None,
                                                       *conv.reference))
    for tf32 in (False, True):
        device.run('run_conv1x1_positions', *conv.arguments, 1, 6, 6, 1, 1, True, None, None, 36,
                   None, None, 0, 1, x, None, out, tf32)
        errors.append((out - expected).abs().max().item())
    assert errors[0] < 1e-5 < errors[1] < 3e-3


def test_infinity_and_the_largest_values_come_through_in_float32(device):
    inputs, outputs = 16, 8
    x, conv = torch.randn(36, inputs), Conv(inputs, outputs, 1, 1, torch.float32, 0)
    x[3, 5], x[7, 2], x[11, 4] = float('inf'), -float('inf'), NAN
    x[13, 1], x[14, 1] = 3.4e38, -3.4028e38  # would round to infinity
    conv.weight[2, 0, 0, 5], conv.weight[3, 0, 0, 2] = 1.5, 0.0  # exact, and none
    conv.weight[:, 0, 0, 1] = 0.25
    x, out = guarded(x), guarded(torch.zeros(36, outputs))
    device.set()
    device.run('run_conv1x1_positions', *conv.arguments, 1, 6, 6, 1, 1, False, None, None, 36, None,
               None, 0, 1, x, None, out)
    expected = x.double() @ conv.weight.double().view(outputs, inputs).t() + conv.bias.double()
    assert torch.equal(out.isnan(), expected.isnan()) and out.isnan().any()
    assert torch.equal(out.isinf(), expected.isinf()) and out.isinf().any()
    finite = expected.isfinite()
    assert torch.allclose(out.double()[finite], expected[finite], rtol=1e-5, atol=1e-5)
    assert torch.equal(out[~finite].nan_to_num(0.0), expected[~finite].float().nan_to_num(0.0))


@pytest.mark.parametrize('descending', [False, True])
def test_long_rows_are_listed_with_two_looks_at_each_flag(device, descending):
    rows, units = 2, 160_000
    flags = (torch.rand(rows, units) < 0.3).to(torch.int8)
    index = guarded(torch.full((rows, units), -1, dtype=torch.int32))
    count = guarded(torch.full((rows,), -1, dtype=torch.int32))
    device.set(3, descending=descending)
    device.run('run_compact', guarded(flags), rows, units, index, count)
    assert device.loads <= 2 * -(-flags.numel() // 16)  # 16 flags in a load
    assert torch.equal(count, flags.sum(1).int())
    for row, on, n in zip(index, flags, count):
        assert torch.equal(row[:n].long(), on.nonzero()[:, 0])
    assert is_intact(index) and is_intact(count)


def untouched(rows, columns):
    """A matrix of half that takes no memory where it is not written to."""
    size = rows * columns * 2
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                       | getattr(mmap, 'MAP_NORESERVE', 0x4000))
    return torch.frombuffer(memory, dtype=torch.float16).view(rows, columns)


def test_offsets_beyond_32_bits(device):
    n, height, width, channels = 3, 4000, 4000, 64  # 3.07e9 values
    positions = n * height * width
    x, out = untouched(positions, channels), untouched(positions, channels)
    assert x.numel() > 2**31
    at = torch.tensor([5, positions - 4001, positions - 1])
    near = torch.tensor([[dy * width + dx for dx in (-1, 0)] for dy in (-1, 0)]).flatten()
    x[at] = torch.randn(3, channels).half()
    x[at[2] + near] = torch.randn(4, channels).half()
    conv = Conv(channels, channels, 1, 1, torch.float16, 0)
    index, count = at.int(), torch.tensor([3], dtype=torch.int32)
    device.set(2)
    device.run('run_conv1x1_positions', *conv.arguments, n, height, width, 1, 1, False, index,
               count, 3, None, None, 0, 1, x, None, out)
    expected = x[at].double() @ conv.reference[0].flatten(1).t() + conv.reference[1]
    assert_close(out[at], expected, torch.float16)

    conv = Conv(channels, channels, 3, 1, torch.float16, 0)
    rows = torch.zeros(1, 1, channels).half()
    device.run('run_conv3x3_patches', *conv.arguments, n, height, width, 1, 1, 1,
               index[2:].contiguous(), count // 3, 1, None, None, 0, 1, x, None, rows)
    weight = conv.reference[0][:, :, :2, :2].permute(0, 2, 3, 1).reshape(channels, -1)
    expected = (x[at[2] + near].double().flatten() @ weight.t() + conv.reference[1]).relu()
    assert_close(rows[0, 0], expected, torch.float16)

    conv = Conv(channels, channels, 1, 1, torch.float16, 0)
    out[at] = torch.randn(3, channels).half()
    before, listed = out[at].double(), torch.randn(3, 1, channels).half()
    device.run('run_conv1x1_add_patches', *conv.arguments, n, height, width, 1, index, count, 3,
               None, None, 0, 1, listed, out, out)
    expected = listed[:, 0].double() @ conv.reference[0].flatten(1).t() + conv.reference[1]
    assert_close(out[at], (before + expected).relu(), torch.float16)


@MANY
@given(st.data())
def test_excitation(device, data):
    dtype, n, s = drawn(data, *TYPES), drawn(data, 1, 3), drawn(data, 1, 3, 64)
    size = tuple(data.draw(st.integers(1, 9)) for _ in range(2))
    channels, hidden = drawn(data, 5, 40, 72), drawn(data, 1, 9, 40)
    index, count = ops.active_patches(
        torch.rand(n, *(-(-m // s) for m in size)) < drawn(data, 0, 0.5, 1))
    rows = random(len(index), min(s, size[0]) * min(s, size[1]), channels, dtype=dtype)
    flat, inside = ops.patch_positions(index, count, size, s)
    weights = [random(*shape, dtype=dtype, scale=0.3)
               for shape in ((hidden, channels), (hidden,), (channels, hidden), (channels,))]
    expected = rows.double()
    ops.excite_patches_.reference(expected, index, count, *size, s,
                                  *(w.double() for w in weights))
    poisoned = rows.clone()
    poisoned[len(flat):] = NAN
    poisoned[:len(flat)][~inside] = NAN
    actual = guarded(poisoned, drawn(data, 0, 1))
    means, scales = torch.full((2, n, channels), NAN)
    set_any(device, data)
    device.run('run_excite', TYPES[dtype], actual, n, *size, s, guarded(index), count, len(index),
               channels, hidden, *weights, means, scales)
    assert_close(actual[:len(flat)][inside], expected[:len(flat)][inside], dtype)
    assert is_intact(actual)


@MANY
@given(st.data())
def test_listing(device, data):
    rows, units = drawn(data, 0, 1, 3), drawn(data, 0, 1, 15, 16, 48, 400, 20000, 40000)
    flags = (torch.rand(rows, units) < drawn(data, 0, 0.5, 1)).to(torch.int8)
    index = guarded(torch.full((rows, units), -1, dtype=torch.int32))
    count = guarded(torch.full((rows,), -1, dtype=torch.int32))
    set_any(device, data)
    device.run('run_compact', guarded(flags, drawn(data, 0, 1)), rows, units, index, count)
    assert torch.equal(count, flags.sum(1).int())
    for row, on, n in zip(index, flags, count):
        assert torch.equal(row[:n].long(), on.nonzero()[:, 0]) and (row[n:] == -1).all()
    assert is_intact(index) and is_intact(count)

    n, height, width = (data.draw(st.integers(1, high)) for high in (3, 90, 90))
    stride, dilation, s = drawn(data, 1, 2), drawn(data, 1, 2, 3), drawn(data, 2, 3, 5, 64)
    grid = (n, *(-(-((m - 1) // stride + 1) // s) for m in (height, width)))
    index, count = ops.active_patches(torch.rand(grid) < drawn(data, 0, 0.3, 1))
    flags = guarded(torch.full((n * height * width,), 7, dtype=torch.int8))
    device.run('run_halo_flags', guarded(index), count, len(index), n, height, width, s, stride,
               dilation, flags)
    expected, found = ops.halo_positions.reference(index, count, n, height, width, s, stride,
                                                   dilation)
    assert torch.equal(flags.nonzero()[:, 0], expected[:int(found)].long())
    assert is_intact(flags)


@DTYPES
@pytest.mark.parametrize('size', [1, 7, 8, 64, 3000])
@pytest.mark.parametrize('shift', [0, 1])
def test_copies_and_sums_of_rows(device, shift, size, dtype):
    rows, index = 9, torch.tensor([0, 8, 3, 4])
    x = guarded(random(rows, size, dtype=dtype), shift)
    device.set()
    # Indices that do not exist give zeros and are not written to.
    listed = guarded(torch.cat([index, torch.tensor([-1, rows])]))
    out = guarded(torch.full((len(listed), size), NAN, dtype=dtype))
    device.run('run_gather_rows', TYPES[dtype], listed, len(listed), rows, size, x, out)
    assert torch.equal(out, torch.cat([x[index], torch.zeros(2, size, dtype=dtype)]))
    assert is_intact(out)
    added = guarded(random(len(listed), size, dtype=dtype))
    out = guarded(x)
    device.run('run_add_rows', TYPES[dtype], listed, len(listed), rows, size, added, out)
    assert_close(out, x.double().index_add(0, index, added[:len(index)].double()), dtype)
    assert is_intact(out)


@DTYPES
def test_lists_that_lie_are_passed_over(device, dtype):
    conv = Conv(16, 24, 1, 1, dtype, 0)
    x, out = guarded(random(12, 16, dtype=dtype)), guarded(torch.full((12, 24), NAN, dtype=dtype))
    index = guarded(torch.tensor([-5, 3, 12, 2**30, 7], dtype=torch.int32))
    device.set()
    for count in (-3, 99):  # of a list of 5
        device.run('run_conv1x1_positions', *conv.arguments, 1, 3, 4, 1, 1, True, index,
                   torch.tensor([count], dtype=torch.int32), 5, None, None, 0, 1, x, None, out)
        written = ~out.isnan().any(1)
        assert written.nonzero()[:, 0].tolist() == ([] if count < 0 else [3, 7])
    assert is_intact(out)
