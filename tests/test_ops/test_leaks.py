"""What is not computed is never read: garbage there does not show, and Winograd equals the rest."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm import ops

from .test_parity import assert_close, channels_last, random_conv

pytestmark = pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_convolutions_of_patches_read_their_windows_only(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    dtype, winograd = draw(torch.float64, torch.float32), draw(True, False)
    n, height, width = (data.draw(st.integers(1, high)) for high in (3, 17, 17))
    middle, outputs = draw(1, 3, 16, 40, 70), draw(1, 5, 16, 48, 70)
    stride, dilation = (1, 1) if winograd else (draw(1, 2), draw(1, 2))
    s = draw(1, 2, 3, 4, 5, 7, 8, 99)
    size = tuple((m - 1) // stride + 1 for m in (height, width))
    mask = torch.rand(n, *(-(-m // s) for m in size)) < draw(0, 0.3, 0.7, 1)
    index, count = ops.active_patches(mask)

    # conv1 wrote the positions that are read, and nothing else.
    halo, found = ops.halo_positions(index, count, n, height, width, s, stride, dilation)
    rows = torch.full((n * height * width, middle), float('nan'), dtype=dtype)
    rows[halo[:int(found)].long()] = torch.randn(int(found), middle, dtype=dtype)
    y = rows.view(n, height, width, middle).permute(0, 3, 1, 2)
    weight, bias = random_conv(outputs, middle, 3, dtype)
    packed = ops.pack_winograd(weight, bias) if winograd else None
    actual = ops.conv3x3_patches(y, index, count, weight, bias, s, stride, dilation,
                                 packed=packed, winograd=winograd)
    expected = ops.conv3x3_patches.reference(y, index, count, weight, bias, s, stride, dilation)
    flat, inside = ops.patch_positions(index, count, size, s)
    assert actual.shape == expected.shape
    actual, expected = (m[:len(flat)][inside] for m in (actual, expected))
    assert torch.isfinite(expected).all() and torch.isfinite(actual).all()
    assert_close(actual, expected, dtype)

    # Rows beyond the list and beyond the map's edge hold anything.
    conv3 = random_conv(7, outputs, 1, dtype)
    listed = torch.full((len(index), min(s, size[0]) * min(s, size[1]), outputs), float('nan'),
                        dtype=dtype)
    listed[:len(flat)][inside] = actual
    identity = channels_last(torch.randn(n, 7, *size, dtype=dtype))
    out, same = identity.clone(), identity.clone()
    ops.conv1x1_add_patches_(out, identity, listed, index, count, *conv3, s)
    ops.conv1x1_add_patches_.reference(same, identity, listed, index, count, *conv3, s)
    assert torch.isfinite(out).all()
    assert_close(out, same, dtype)


@pytest.mark.parametrize('stride', [1, 2])
def test_1x1_convolutions_read_listed_positions_only(stride):
    x = torch.full((2, 6, 7, 20), float('nan')).permute(0, 3, 1, 2)
    index, count = ops.compact(torch.rand(1, 2 * -(-6 // stride) * -(-7 // stride)) < 0.5)
    index = index[0]
    listed = index[:int(count)].long()
    view = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1)
    rows = torch.randn(len(listed), 20)
    view[tuple(torch.unravel_index(listed, view.shape[:3]))] = rows
    weight, bias = random_conv(33, 20, 1, torch.float32)
    y = ops.conv1x1_positions(x, index, count, weight, bias, stride, False)
    y = y.permute(0, 2, 3, 1).reshape(-1, 33)[listed]
    assert_close(y, torch.nn.functional.linear(rows, weight.flatten(1), bias), torch.float32)
