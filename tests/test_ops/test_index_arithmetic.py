"""The index arithmetic that CPU and CUDA kernels share."""
import ctypes

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laud_mm import ops

LAST = 2**31 - 1
QUICK = settings(max_examples=60, deadline=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])


def int32(array):
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))


@QUICK
@given(by=st.integers(1, LAST), seed=st.integers(0, 99))
def test_fast_division_equals_division(device, by, seed):
    numbers = np.random.default_rng(seed).integers(0, 2**31, 200)
    multiples = numbers // by * by
    numbers = np.concatenate([numbers, multiples, np.maximum(multiples - 1, 0), [0, 1, LAST]])
    numbers = numbers.astype(np.int32)
    quotients = np.empty_like(numbers)
    device.library.divide(ctypes.c_int64(by), ctypes.c_int64(len(numbers)), int32(numbers),
                          int32(quotients))
    assert (quotients == numbers // by).all()


@pytest.mark.parametrize('by', [1, 2, 3, 5, 7, 2**16 - 1, 2**16, 2**30, 2**30 + 1, LAST])
def test_fast_division_by_numbers_at_the_edge(device, by):
    numbers = np.array([0, 1, by - 1, by, min(2 * by, LAST), LAST - 1, LAST], dtype=np.int32)
    quotients = np.empty_like(numbers)
    device.library.divide(ctypes.c_int64(by), ctypes.c_int64(len(numbers)), int32(numbers),
                          int32(quotients))
    assert (quotients == numbers // by).all()


def test_chunks_of_shared_memory_fill_their_rows_and_meet_in_no_bank(device):
    places = np.empty((64, 4), dtype=np.int32)
    device.library.chunk_places(ctypes.c_int64(64), int32(places))
    assert sorted(places.flatten()) == list(range(0, 64 * 64, 16))  # each place once
    banks = places // 16 % 8  # of 16 bytes
    for first in range(0, 64, 8):
        for chunk in range(4):  # what ldmatrix reads at once
            assert len(set(banks[first:first + 8, chunk])) == 8


@QUICK
@given(samples=st.integers(0, 4), rows=st.integers(0, 400), groups=st.integers(1, 5),
       columns=st.integers(1, 300))
def test_tiles_cover_every_row_and_column_once(device, samples, rows, groups, columns):
    room = 4000
    found = np.empty((room, 4), dtype=np.int32)
    count = device.library.tiles(*map(ctypes.c_int64, (samples, rows, groups, columns, 64, 32,
                                                       room)), int32(found))
    expected = [(n, r, g, c) for n in range(samples) for r in range(-(-rows // 64))
                for g in range(groups) for c in range(-(-columns // 32))]
    assert [tuple(tile) for tile in found[:count]] == expected


@QUICK
@given(st.data())
def test_rows_lie_where_the_reference_puts_them(device, data):
    n, height, width = (data.draw(st.integers(1, high)) for high in (3, 14, 14))
    stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    s = data.draw(st.sampled_from([1, 2, 3, 5, 99]))
    size = tuple((m - 1) // stride + 1 for m in (height, width))
    mask = torch.rand(n, *(-(-m // s) for m in size)) < data.draw(st.floats(0, 1))
    index, count = ops.active_patches(mask)
    flat, inside = ops.patch_positions(index, count, size, s)
    rows = torch.empty(flat.numel(), 3, dtype=torch.int32)
    arguments = (n, height, width, s, stride, dilation, index.data_ptr(), count.data_ptr(),
                 len(index), rows.data_ptr())
    device.library.map_rows((ctypes.c_int64 * len(arguments))(*arguments))

    read, written, taps = rows.long().unbind(1)
    flat, inside = flat.flatten(), inside.flatten()
    assert torch.equal(written, torch.where(inside, flat, -1))
    flat, read, taps = flat[inside], read[inside], taps[inside]
    sample, rest = flat // (size[0] * size[1]), flat % (size[0] * size[1])
    y, x = rest // size[1] * stride, rest % size[1] * stride
    assert torch.equal(read, (sample * height + y) * width + x)
    for tap in range(9):
        at_y, at_x = y + (tap // 3 - 1) * dilation, x + (tap % 3 - 1) * dilation
        lies_inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
        assert torch.equal((taps >> tap) % 2 == 1, lies_inside)
