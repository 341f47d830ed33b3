"""The operations of a device equal their references in float64 on the CPU."""
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from laud_mm import ops
from laud_mm.models.backbones import LAUDResNet

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


@pytest.mark.parametrize('paradigm', PARADIGMS)
def test_a_forward_pass_reads_nothing_back_from_the_device(paradigm, monkeypatch):
    # Fake tensors have no values: whatever would wait for them raises.
    monkeypatch.setattr(ops, 'has_kernel', lambda device: True)
    with FakeTensorMode():
        net = LAUDResNet(50, base_channels=8, paradigm=paradigm).eval().requires_grad_(False)
        outputs = net(torch.randn(2, 3, 64, 96))
    assert [tuple(y.shape[-2:]) for y in outputs] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@needs_gpu
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('paradigm', PARADIGMS)
def test_a_forward_pass_is_captured_in_one_graph(make_net, paradigm, dtype):
    net = make_net(paradigm=paradigm, base_channels=16).to('cuda', dtype)
    for masker in net.maskers():  # so that units are on and off
        for parameter in masker.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    first, second = (torch.randn(4, 3, 96, 64, device='cuda', dtype=dtype) for _ in range(2))
    x = first.clone()
    with torch.no_grad():
        expected = [[y.clone() for y in net(image)] for image in (first, second)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            net(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = net(x)
    # Other decisions, the same graph: counts are read on the device.
    for image, wanted in zip((second, first), expected[::-1]):
        x.copy_(image)
        graph.replay()
        for actual, y in zip(outputs, wanted):
            assert_close(actual, y, dtype)


@needs_gpu
@pytest.mark.parametrize('paradigm', PARADIGMS)
def test_skipping_equals_masked_on_the_gpu(make_net, paradigm):
    net = make_net(paradigm=paradigm, base_channels=16).cuda()
    x = torch.randn(3, 3, 127, 97, device='cuda')
    torch.backends.cudnn.allow_tf32, previous = False, torch.backends.cudnn.allow_tf32
    try:
        with torch.no_grad():
            net.execution = 'skipping'
            skipped = net(x)
            net.execution = 'masked'
            masked = net(x)
    finally:
        torch.backends.cudnn.allow_tf32 = previous
    for actual, expected in zip(skipped, masked):
        assert_close(actual, expected, torch.float32)
