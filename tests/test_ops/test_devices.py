"""The operations of a device equal their references in float64 on the CPU."""
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from laud_mm import ops
from laud_mm.latency import arithmetic
from laud_mm.latency.arithmetic import Limits, Product
from laud_mm.models.dynamic import replay
from laud_mm.ops import library
from laud_mm.profiling import gpu_checks
from laud_mm.profiling.bench import run_precision
from laud_mm.profiling.gpu_checks import (
    OpCheck,
    op_checks,
    opposite_decisions,
    replays_differ,
    stage_sized,
    tiles_of,
)

from ..conftest import TINY_REGNET, TINY_T2T
from .test_parity import assert_close, channels_last, random_conv

needs_gpu = pytest.mark.skipif(not (torch.cuda.is_available() and ops.has_kernel('cuda')),
                               reason='no GPU, or the operations are not compiled for it')
DEVICES = pytest.mark.parametrize('device', [
    pytest.param('cpu', marks=pytest.mark.skipif(not ops.has_kernel('cpu'),
                                                 reason='the operations are not compiled')),
    pytest.param('cuda', marks=needs_gpu)])
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PARADIGMS = ('layer', 'spatial', 'channel', 'both')
MANY = settings(max_examples=60, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])


def both(operation, device, *args, **kwargs):
    """Run an operation on a device, and its reference in float64 on the CPU."""
    def move(value, to_device):
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device) if to_device else value.cpu().double() if \
            value.is_floating_point() else value.cpu()
    # A first argument that is written to is a fresh copy for each.
    inputs = [[move(a, on).clone() if isinstance(a, torch.Tensor) else a for a in args]
              for on in (True, False)]
    keywords = [{k: move(v, on) for k, v in kwargs.items()} for on in (True, False)]
    actual = operation(*inputs[0], **keywords[0])
    with torch.no_grad():
        expected = operation.reference(*inputs[1], **keywords[1])
    return actual, inputs[1][0] if expected is None else expected


@DEVICES
@MANY
@given(st.data())
def test_convolutions(device, data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    dtype, n = draw(*DTYPES), draw(0, 1, 3)
    height, width = (data.draw(st.integers(1, 33)) for _ in range(2))
    inputs, middle, outputs = draw(3, 64, 70), draw(16, 40, 64, 136), draw(30, 64, 256)
    stride, dilation, s = draw(1, 2), draw(1, 2), draw(1, 2, 4, 7, 99)
    picks = draw(True, False)
    groups = 1 if picks else draw(*(g for g in (1, 2, 8) if middle % g == 0))
    size = tuple((m - 1) // stride + 1 for m in (height, width))
    index, count = ops.active_patches(
        torch.rand(n, *(-(-m // s) for m in size)) < draw(0, 0.5, 1))
    channels, on = {}, torch.ones(n, middle, dtype=torch.bool)
    if picks:
        group_size = draw(1, 2, 8)
        channel_index, channel_count = ops.compact(torch.rand(n, middle // group_size) < 0.5)
        channels = dict(channel_index=channel_index, channel_count=channel_count,
                        group_size=group_size)
        on = torch.arange(middle) < channel_count[:, None] * group_size

    x = channels_last(torch.randn(n, inputs, height, width).to(dtype))
    conv = random_conv(middle, inputs, 1, torch.float32)
    y, expected = both(ops.conv1x1_positions, device, x, None, None,
                       *(w.to(dtype) for w in conv), **channels)
    off = ~on[:, :, None, None]  # what lies there is unspecified
    assert_close(y.cpu().masked_fill(off, 0), expected.masked_fill(off, 0), dtype)

    y = channels_last(torch.randn(n, middle, height, width).to(dtype))
    conv = random_conv(middle, middle, 3, torch.float32, groups)
    rows, expected = both(ops.conv3x3_patches, device, y, index, count,
                          *(w.to(dtype) for w in conv), s, stride, dilation, groups, **channels)
    flat, inside = ops.patch_positions(index, count, size, s)
    off = ~on[flat[inside] // (size[0] * size[1])]
    assert_close(*(r.cpu()[:len(flat)][inside].masked_fill(off, 0) for r in (rows, expected)),
                 dtype)

    identity = channels_last(torch.randn(n, outputs, *size).to(dtype))
    conv = random_conv(outputs, middle, 1, torch.float32)
    out, expected = both(ops.conv1x1_add_patches_, device, identity, identity,
                         torch.randn(expected.shape).to(dtype), index, count,
                         *(w.to(dtype) for w in conv), s, **channels)
    assert_close(out.cpu(), expected, dtype)


@DEVICES
@MANY
@given(st.data())
def test_lists_maskers_and_excitation(device, data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    dtype, n, channels, s = draw(*DTYPES), draw(1, 3), draw(3, 64, 70), draw(1, 3, 99)
    height, width = (data.draw(st.integers(1, 20)) for _ in range(2))
    grid = tuple(-(-m // s) for m in (height, width))
    (index, count), (expected, known) = both(ops.compact, device,
                                             torch.rand(n, grid[0] * grid[1]) < 0.5)
    assert torch.equal(count.cpu(), known)
    for row, same, listed in zip(index.cpu(), expected, known):
        assert torch.equal(row[:listed], same[:listed])
    index, count = ops.active_patches(torch.rand(n, *grid) < draw(0, 0.5, 1))
    (halo, found), (expected, known) = both(ops.halo_positions, device, index, count, n, height,
                                            width, s)
    assert torch.equal(halo.cpu()[:int(found)], expected[:int(known)])

    x = channels_last(torch.randn(n, channels, height, width).to(dtype))
    weight, bias = torch.randn(channels), torch.randn(1)
    mask, expected = both(ops.patch_mask, device, x, weight, bias, s)
    means = torch.nn.functional.avg_pool2d(
        (x.double() * weight.double()[:, None, None]).sum(1, keepdim=True),
        tuple(min(s, m) for m in (height, width)), ceil_mode=True, count_include_pad=False)[:, 0]
    sure = (means + bias).abs() > 1e-3  # else rounding decides
    assert torch.equal(mask.cpu()[sure], expected[sure])
    conv = [w.to(dtype) for w in random_conv(40, channels, 1, torch.float32)]
    (y, mask), (y_expected, expected) = both(ops.masker_conv1x1, device, x, *conv, weight, bias, s)
    assert torch.equal(mask.cpu()[sure], expected[sure])
    assert_close(y.cpu(), y_expected, dtype)
    assert_close(*(m.cpu() for m in both(ops.position_means, device, x)), torch.float32)

    rows = torch.randn(len(index), min(s, height) * min(s, width), channels).to(dtype)
    weights = [torch.randn(*shape).to(dtype) / 4
               for shape in ((9, channels), (9,), (channels, 9), (channels,))]
    actual, expected = both(ops.excite_patches_, device, rows, index, count, height, width, s,
                            *weights)
    flat, inside = ops.patch_positions(index, count, (height, width), s)
    assert_close(actual.cpu()[:len(flat)][inside], expected[:len(flat)][inside], dtype)


@DEVICES
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('channels', [7, 64])
def test_copies_and_sums_of_rows(device, channels, dtype):
    tokens, index = torch.randn(2, 5, channels).to(dtype), torch.tensor([9, 0, 4])
    rows = torch.randn(3, channels).to(dtype)
    for case in ((ops.gather_tokens, tokens, index),
                 (ops.scatter_add_tokens_, tokens, index, rows)):
        actual, expected = both(case[0], device, *case[1:])
        assert_close(actual.cpu(), expected, dtype)


def test_float64_goes_to_the_references_on_a_gpu(monkeypatch):
    monkeypatch.setattr(library._state, 'loaded', True)
    monkeypatch.setattr(torch.ops.laud_mm_build, 'cuda', lambda: True)
    asked = [(d, t) for d in ('cpu', 'cuda') for t in (*DTYPES, torch.float64)]
    assert [ops.has_kernel(*one) for one in asked] == [one != asked[-1] for one in asked]
    ran = []
    reference = ops.patch_mask.reference
    with FakeTensorMode(), torch.device('cuda'):
        monkeypatch.setattr(torch.nn.functional, 'avg_pool2d', lambda x, *_, **__: ran.append(
            x.dtype) or x)
        for dtype in (*DTYPES, torch.float64):
            x = torch.empty(2, 4, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
            ops.patch_mask(x, torch.empty(4), torch.empty(1), 3)
    assert ran == [torch.float64] and reference is ops.patch_mask.reference


def test_tf32_is_asked_for_in_either_way_of_torch():
    allows, matmul = torch.ops.laud_mm_build.allows_tf32, torch.backends.cuda.matmul
    assert not allows()
    try:
        matmul.allow_tf32 = True
        assert allows()
        matmul.allow_tf32 = False
        assert not allows()
        matmul.fp32_precision = 'tf32'  # what `allow_tf32` does not know of, and raises at
        assert allows()
        matmul.fp32_precision = 'none'
        torch.backends.fp32_precision = 'tf32'
        assert allows()
        torch.backends.fp32_precision = 'ieee'
        assert not allows()
    finally:
        torch.backends.fp32_precision = matmul.fp32_precision = 'none'
        matmul.allow_tf32 = False


@given(st.integers(1, 10**7), st.integers(1, 2048), st.integers(1, 9), st.integers(1, 160))
def test_a_tile_of_halves_is_the_fastest_by_arithmetic(rows, columns, groups, multiprocessors):
    limits = Limits(multiprocessors)
    # The cache and shared memory serve all multiprocessors that there are.
    limits = replace(limits, **{name: getattr(limits, name) * multiprocessors / 132 for name in (
        'tflops', 'shared_tb_s', 'cache_tb_s')})
    found = torch.ops.laud_mm_build.tile(rows, columns, 1, multiprocessors, True)
    ms = {(tile.rows, tile.columns): Product((rows + 1) // 2, 999, columns, tile).ms(limits)
          for tile in arithmetic.TILES}
    assert ms[found] <= 1.02 * min(ms.values())
    floats = torch.ops.laud_mm_build.tile(rows, columns, groups, multiprocessors, False)
    assert floats in tiles_of(torch.float32)


@pytest.mark.parametrize('rows, columns, halves, floats', [
    (128 * 56**2, 64, (128, 64), (128, 64)), (128 * 28**2, 128, (128, 128), (128, 128)),
    (128 * 14**2, 256, (128, 256), (128, 64)), (128 * 7**2, 512, (128, 128), (64, 64)),
    (128 * 14**2, 1024, (128, 256), (128, 128)), (10**7, 32, (128, 32), (128, 32)),
    (100, 2048, (64, 64), (64, 64))])
def test_tiles_of_a_resnet_on_132_multiprocessors(rows, columns, halves, floats):
    assert torch.ops.laud_mm_build.tile(rows, columns, 1, 132, True) == halves
    assert torch.ops.laud_mm_build.tile(rows, columns, 1, 132, False) == floats


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize('multiprocessors', [40, 84, 108, 132, 148])
def test_every_tile_has_a_stage_sized_case_on_common_gpus(multiprocessors, dtype):
    for tile in tiles_of(dtype):
        n, columns, side = stage_sized(tile, multiprocessors, dtype)
        assert n * side**2 * columns * 9 < 2**31, 'too large to test with'


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@DEVICES
def test_kernels_on_sizes_of_networks(device, dtype):
    with torch.no_grad():
        checks = list(op_checks(device, (dtype,)))
        errors = {check.name: check.error() for check in checks}
    assert len(errors) == len(checks) >= 3 * len(tiles_of(dtype)) + 7
    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_the_check_of_sums_holds_for_references(dtype):
    with torch.no_grad(), ops.use_references():
        check = OpCheck('sums', lambda: gpu_checks._sums('cpu', dtype, 8, 32, 7), dtype)
        assert check.error() <= 1


NETS = [*((50, dict(paradigm=paradigm)) for paradigm in PARADIGMS),
        (50, dict(paradigm='channel', mask_before_norm=True)),
        *((TINY_REGNET, dict(paradigm=paradigm)) for paradigm in PARADIGMS),
        *((TINY_T2T, dict(paradigm=paradigm))
          for paradigm in ('token', 'head', 'layer', ('token', 'head', 'layer')))]


@pytest.mark.parametrize('arch, settings', NETS, ids=str)
def test_a_forward_pass_reads_nothing_back_from_the_device(make_net, arch, settings, monkeypatch):
    # Fake tensors have no values: whatever would wait for them raises.
    monkeypatch.setattr(ops, 'has_kernel', lambda device, dtype=None: True)
    with torch.no_grad(), FakeTensorMode(), torch.device('cuda'):
        net = make_net(arch, **settings)
        outputs = net(torch.randn(2, 3, 64, 96))
    assert all(y.is_cuda and len(y) == 2 for y in outputs)


@DEVICES
@pytest.mark.parametrize('arch, settings', NETS, ids=str)
def test_a_replayed_pass_is_the_pass_itself(make_net, arch, settings, device):
    for dtype in DTYPES if device == 'cuda' else DTYPES[:1]:
        net = make_net(arch, **settings).to(device, dtype)
        images = [torch.randn(8, 3, 96, 64, device=device, dtype=dtype) for _ in range(2)]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings('error', 'the network runs without a CUDA graph')
            assert replays_differ(net, *images) == []


def test_a_replay_that_differs_is_noticed(make_net, monkeypatch):
    net, images = make_net(paradigm='layer'), torch.randn(2, 8, 3, 64, 64)
    monkeypatch.setattr(gpu_checks, 'record_pass', lambda run, x: SimpleNamespace(
        load=lambda image: None, replay=lambda: run(images[0])))
    with torch.no_grad():
        wrong = replays_differ(net, *images)
    assert len(wrong) == 8 and all(name.startswith('second images') for name in wrong)


def test_a_wrong_kernel_is_noticed():
    right, wrong = torch.ones(3, dtype=torch.float64), torch.full((3,), 1.3)
    def error(actual, expected):
        return OpCheck('one', lambda: [(actual, expected)], torch.float16).error()
    assert error(right.half(), right) == 0 and error(wrong, right) > 1
    assert error(right * float('nan'), right) > 1
    assert error(torch.tensor([1, 2]), torch.tensor([1, 3])) > 1


@needs_gpu
@pytest.mark.parametrize('arch, settings', NETS, ids=str)
def test_skipping_equals_masked_on_the_gpu(make_net, arch, settings):
    net = make_net(arch, **settings).cuda()
    x = torch.randn(4, 3, 127, 97, device='cuda')
    with torch.no_grad(), run_precision('fp32', 'cuda'):
        net.execution = 'masked'
        for decisions in opposite_decisions(net, x):
            found = []
            for net.execution in ('skipping', 'auto', 'masked'):
                with replay(net, decisions):
                    found.append(net(x))
            for own in found[:2]:
                for actual, expected in zip(own, found[2]):
                    assert_close(actual, expected, torch.float32)
