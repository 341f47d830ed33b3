"""Compiled operations equal their references, on random shapes."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm import ops
from laud_mm.models.dynamic.folding import FoldedConv

pytestmark = pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def assert_close(actual, expected, dtype):
    if not expected.numel():
        return
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= TOLERANCE[dtype] * max(1, expected.double().abs().max().item()), error


def random_conv(out, inputs, kernel, dtype, groups=1):
    fan_in = inputs // groups * kernel**2
    weight = torch.randn(out, inputs // groups, kernel, kernel, dtype=dtype) / fan_in**0.5
    return weight, torch.randn(out, dtype=dtype)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_convolutions_of_a_block_equal_their_references(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    dtype = draw(*TOLERANCE)
    n, height, width = (data.draw(st.integers(1, high)) for high in (3, 15, 15))
    inputs, middle, outputs = draw(3, 16, 17, 70), draw(16, 24, 40, 64, 70), draw(32, 50, 128)
    stride1, stride2, dilation, s = draw(1, 2), draw(1, 2), draw(1, 2, 3), draw(1, 2, 3, 4, 7, 99)
    picks, groups = draw(True, False), draw(*(g for g in (1, 2, 5, 8) if middle % g == 0))
    mid = tuple((size - 1) // stride1 + 1 for size in (height, width))
    out = tuple((size - 1) // stride2 + 1 for size in mid)
    grid = tuple(-(-size // s) for size in out)
    mask = torch.rand(n, *grid) < draw(0, 0.3, 0.6, 1)
    index, count = ops.active_patches(mask)
    channels, computed = {}, torch.ones(n, middle, dtype=torch.bool)
    if picks:
        size = draw(*(g for g in (1, 2, 3, 5, 8) if middle % g == 0))
        on = torch.rand(n, middle // size) < draw(0, 0.5, 1)
        channel_index, channel_count = ops.compact(on)
        channels = dict(channel_index=channel_index, channel_count=channel_count, group_size=size)
        computed = torch.arange(middle) < channel_count[:, None] * size

    x = channels_last(torch.randn(n, inputs, height, width, dtype=dtype))
    conv1 = random_conv(middle, inputs, 1, dtype)
    halo, found = ops.halo_positions(index, count, n, *mid, s, stride2, dilation)
    args = (x, halo, found, *conv1, stride1, True)
    y, y_expected = (run(*args, **channels) for run in (
        ops.conv1x1_positions, ops.conv1x1_positions.reference))
    positions = halo[:int(found)].long()
    keep = computed[positions // (mid[0] * mid[1])]
    rows, expected = (m.permute(0, 2, 3, 1).reshape(-1, middle)[positions].masked_fill(~keep, 0)
                      for m in (y, y_expected))
    assert_close(rows, expected, dtype)
    listed = ops.active_patches(torch.rand(n, *(-(-size // s) for size in mid)) < 0.5)
    flat, inside = ops.patch_positions(*listed, mid, s)
    positions = flat[inside]  # patches instead of their positions
    keep = computed[positions // (mid[0] * mid[1])]
    rows, expected = (
        run(x, *listed, *conv1, stride1, True, **channels, granularity=s).permute(0, 2, 3, 1)
        .reshape(-1, middle)[positions].masked_fill(~keep, 0)
        for run in (ops.conv1x1_positions, ops.conv1x1_positions.reference))
    assert_close(rows, expected, dtype)

    conv2 = random_conv(middle, middle, 3, dtype, groups)
    args = (index, count, *conv2, s, stride2, dilation, groups)
    packed = draw(None, FoldedConv(*conv2, groups).packed_for(channels.get('group_size', 0)))
    shifted = picks and groups == 1 and draw(True, False)
    shifts = [torch.randn(n, *size, dtype=dtype) if shifted else None
              for size in ((middle, 9), (outputs,))]
    rows = ops.conv3x3_patches(y, *args, **channels, packed=packed, shifts=shifts[0])
    rows_expected = ops.conv3x3_patches.reference(y_expected, *args, **channels, shifts=shifts[0])
    conv3 = random_conv(outputs, middle, 1, dtype)
    identity = channels_last(torch.randn(n, outputs, *out, dtype=dtype))
    actual, expected = identity.clone(), identity.clone()
    ops.conv1x1_add_patches_(actual, identity, rows, index, count, *conv3, s, **channels,
                             shifts=shifts[1])
    ops.conv1x1_add_patches_.reference(expected, identity, rows_expected, index, count, *conv3, s,
                                       **channels, shifts=shifts[1])
    assert_close(actual, expected, dtype)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_branch_of_a_convnext_block_equals_its_references(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    dtype = draw(*TOLERANCE)
    n, height, width = (data.draw(st.integers(1, high)) for high in (3, 24, 24))
    channels, hidden, kernel = draw(3, 16, 40, 70), draw(16, 50, 160), draw(3, 5, 7)
    s = draw(1, 2, 3, 4, 7, 8, 99, ops.WHOLE)
    grid = (1, 1) if s == ops.WHOLE else (-(-height // s), -(-width // s))
    index, count = ops.active_patches(torch.rand(n, *grid) < draw(0, 0.3, 0.6, 1))
    x = channels_last(torch.randn(n, channels, height, width, dtype=dtype))
    taps = torch.randn(kernel, kernel, channels, dtype=dtype) / kernel
    args = (x, index, count, taps, torch.randn(channels, dtype=dtype), s, 1e-3)
    rows, expected = (run(*args)[:int(count)] for run in (
        ops.depthwise_norm_patches, ops.depthwise_norm_patches.reference))
    assert_close(rows, expected, dtype)
    if min(height, width) >= kernel:
        conv = random_conv(hidden, channels, kernel, dtype)
        assert_close(ops.patchify(x, *conv, draw(None, ops.pack_patchify(*conv))),
                     ops.patchify.reference(x, *conv), dtype)
    rows = torch.cat([expected, expected.new_zeros(len(index) - int(count), *rows.shape[1:])])
    layers = *random_conv(hidden, channels, 1, dtype), *random_conv(channels, hidden, 1, dtype)
    packed = draw({}, dict(packed1=FoldedConv(*layers[:2]).packed,
                           packed2=FoldedConv(*layers[2:]).packed))
    actual, expected = x.clone(), x.clone()
    ops.mlp_add_patches_(actual, x, rows, index, count, *layers, s, **packed)
    ops.mlp_add_patches_.reference(expected, x, rows, index, count, *layers, s)
    assert_close(actual, expected, dtype)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_listing_equals_its_reference(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    n, height, width = (data.draw(st.integers(1, high)) for high in (4, 20, 20))
    stride, dilation, s = draw(1, 2), draw(1, 2, 3), draw(1, 2, 3, 5, 64)
    grid = tuple(-(-((size - 1) // stride + 1) // s) for size in (height, width))
    mask = torch.rand(n, *grid) < draw(0, 0.4, 1)
    index, count = ops.active_patches(mask)
    assert torch.equal(index[:int(count)].long(), mask.flatten().nonzero()[:, 0])
    args = (index, count, n, height, width, s, stride, dilation)
    (actual, found), (expected, known) = (
        run(*args) for run in (ops.halo_positions, ops.halo_positions.reference))
    assert torch.equal(found, known)
    assert torch.equal(actual[:int(found)], expected[:int(known)])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_maskers_equal_their_references(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    n, height, width = (data.draw(st.integers(1, high)) for high in (4, 20, 20))
    channels, window = draw(3, 16, 70, 128), draw(1, 2, 3, 7, 64)
    x = channels_last(torch.randn(n, channels, height, width, dtype=torch.float64))
    weight, bias = torch.randn(channels).double(), torch.randn(1).double()
    mask = ops.patch_mask(x, weight, bias, window)
    assert torch.equal(mask, ops.patch_mask.reference(x, weight, bias, window))
    conv = random_conv(40, channels, 1, torch.float64)
    y, same = ops.masker_conv1x1(x, *conv, weight, bias, window)
    assert torch.equal(same, mask)
    assert_close(y, ops.conv1x1_positions.reference(x, None, None, *conv), torch.float64)
    assert_close(ops.position_means(x), x.mean((2, 3)), torch.float64)


@pytest.mark.parametrize('s', [1, 3, 64])
@pytest.mark.parametrize('rate', [0, 0.5, 1])
@pytest.mark.parametrize('picked', [None, 0, 0.5, 1])
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_excitation_equals_its_reference(rate, s, picked, dtype):
    n, size, channels, hidden = 3, (7, 10), 40, 9
    grid = tuple(-(-m // s) for m in size)
    index, count = ops.active_patches(torch.rand(n, *grid) < rate)
    area = min(s, size[0]) * min(s, size[1])
    rows = torch.randn(len(index), area, channels, dtype=dtype)
    weights = [torch.randn(*shape, dtype=dtype) / shape[-1]**0.5
               for shape in ((hidden, channels), (hidden,), (channels, hidden), (channels,))]
    listed, active = {}, torch.full((n,), channels)
    if picked is not None:
        channel_index, channel_count = ops.compact(torch.rand(n, 20) < picked)
        listed = dict(channel_index=channel_index, channel_count=channel_count, group_size=2)
        active = 2 * channel_count
    actual, expected = rows.clone(), rows.clone()
    ops.excite_patches_(actual, index, count, *size, s, *weights, **listed)
    ops.excite_patches_.reference(expected, index, count, *size, s, *weights, **listed)
    flat, inside = ops.patch_positions(index, count, size, s)
    off = torch.arange(channels) >= active[flat // (size[0] * size[1])][:, :, None]
    actual, expected = (r[:len(flat)].masked_fill(off, 0)[inside] for r in (actual, expected))
    assert_close(actual, expected, dtype)


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_copies_and_sums_of_rows_equal_their_references(dtype):
    tokens, index = torch.randn(2, 5, 7).to(dtype), torch.tensor([0, 4, 9])
    assert torch.equal(ops.gather_tokens(tokens, index), tokens.flatten(0, 1)[index])
    rows = torch.randn(3, 7).to(dtype)
    actual, expected = tokens.clone(), tokens.clone()
    ops.scatter_add_tokens_(actual, index, rows)
    ops.scatter_add_tokens_.reference(expected, index, rows)
    assert_close(actual, expected, dtype)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_first_convolution_equals_its_reference(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    dtype, kernel, stride = draw(*TOLERANCE), draw(1, 3, 5, 7), draw(1, 2, 3)
    pool = draw(True, False)
    n, height, width = data.draw(st.integers(0, 3)), *(data.draw(st.integers(1, 80)) for _ in 'hw')
    inputs, outputs = data.draw(st.integers(1, 5)), draw(1, 16, 40, 64, 70)
    x, conv = torch.randn(n, inputs, height, width, dtype=dtype), random_conv(
        outputs, inputs, kernel, dtype)
    x = draw(x, channels_last(x), x.transpose(2, 3).contiguous().transpose(2, 3))
    packed = draw(None, ops.pack_stem(*conv))
    y = ops.stem_conv(x, *conv, stride, pool, packed)
    expected = ops.stem_conv.reference(x, *conv, stride, pool)
    assert (y.shape, y.dtype) == (expected.shape, dtype)
    if n:
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in (y, expected))
    assert_close(y, expected, dtype)


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_the_pool_of_the_first_convolution_keeps_what_is_not_finite(value, dtype):
    x = torch.randn(2, 3, 40, 33, dtype=dtype)
    x[0, 1, 20, 5] = value
    conv = random_conv(20, 3, 7, dtype)
    y, expected = (run(x, *conv, 2, True) for run in (ops.stem_conv, ops.stem_conv.reference))
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert torch.equal(y.isnan(), expected.isnan())


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_rectifying_equals_relu_for_all_values_of_half_types(dtype):
    if torch.finfo(dtype).bits == 16:
        values = torch.arange(-2**15, 2**15, dtype=torch.int16).view(dtype)
    else:
        special = torch.tensor([0., 1e-40, 1, float('inf'), float('nan')], dtype=dtype)
        values = torch.cat([special, -special, torch.randn(100_000, dtype=dtype)])
    y = channels_last(values.view(1, 2, -1, 1))
    expected = y.relu()
    ops.rectify_(y)
    assert torch.equal(y.nan_to_num(-1), expected.nan_to_num(-1))


def test_bad_arguments_name_the_argument_and_its_value():
    x = channels_last(torch.randn(2, 8, 5, 5))
    weight, bias = random_conv(16, 8, 1, torch.float32)
    index, count = ops.active_patches(torch.ones(2, 5, 5))
    good = dict(x=x, index=index, count=count, weight=weight, bias=bias)
    for change, message in [
            (dict(x=x.contiguous()), 'channels-last'), (dict(x=x.int()), 'float32'),
            (dict(weight=weight.double()), 'weight must be'), (dict(bias=bias[:3]), 'bias'),
            (dict(index=index + 1), 'got 50'), (dict(count=-count), 'got -50'),
            (dict(count=count + 1), 'got 51'), (dict(index=index.long()), 'int32'),
            (dict(stride=0), 'stride'), (dict(packed=torch.zeros(3)), 'packed')]:
        with pytest.raises(RuntimeError, match=message):
            ops.conv1x1_positions(**{**good, **change})
    for change, message in [
            (dict(weight=torch.zeros(4, 2, 3, 3)), r'weight must be \(out, 3, k, k\)'),
            (dict(weight=torch.zeros(4, 3, 2, 2)), 'odd k'), (dict(bias=torch.zeros(5)), 'bias'),
            (dict(stride=0), 'stride'), (dict(x=torch.zeros(3, 8, 8)), 'x must be'),
            (dict(weight=torch.zeros(4, 3, 3, 3).double()), 'weight must be'),
            (dict(packed=torch.zeros(3)), 'packed')]:
        good = dict(x=torch.zeros(1, 3, 8, 8), weight=torch.zeros(4, 3, 3, 3),
                    bias=torch.zeros(4), stride=2, pool=False)
        with pytest.raises(RuntimeError, match=message):
            ops.stem_conv(**{**good, **change})
    with pytest.raises(RuntimeError, match='index.*got 12'):
        ops.gather_tokens(torch.zeros(2, 6, 4), torch.tensor([12]))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_the_reference_of_half_types_holds_on_narrow_maps_with_a_stride(dtype):
    """The library's own convolution of such maps reads what is not there."""
    y = channels_last(torch.randn(1, 16, 9, 1, dtype=dtype))
    weight, bias = random_conv(16, 16, 3, dtype)
    patches = ops.active_patches(torch.ones(1, 1, 1, dtype=torch.bool))
    rows = ops.conv3x3_patches.reference(y, *patches, weight, bias, 7, 2, 1, 1)
    dense = torch.relu(torch.nn.functional.conv2d(y.double(), weight.double(), bias.double(), 2, 1))
    assert_close(rows[0], dense[0, :, :, 0].T, dtype)
