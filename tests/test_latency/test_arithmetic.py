"""The arithmetic of a forward pass on a GPU follows from the programs and stands in the docs."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laud_mm.latency.arithmetic import (
    Cost,
    Limits,
    Product,
    Tile,
    forward_arithmetic,
    table,
    tile_for,
)
from laud_mm.specs import dynamic_flops, network_spec

from ..conftest import ROOT


def spec(paradigm):
    return network_spec('resnet101', (224, 224), paradigm)


def test_the_table_of_the_documentation_is_this_one():
    assert table() in (ROOT / 'docs' / 'ops.md').read_text(), \
        'paste what `python -m laud_mm.latency.arithmetic` prints'


@pytest.mark.parametrize('paradigm, most', [('layer', 3), ('spatial', 6)])
def test_few_kernels_run_besides_the_convolutions_of_a_block(paradigm, most):
    stages = forward_arithmetic(spec(paradigm), 0.5, 128)
    assert 0 < max(stage.ours for stage in stages) <= most


@pytest.mark.parametrize('rate', [0.25, 0.5, 1.0])
def test_products_are_those_of_the_op_specs(rate):
    network = spec('layer')
    flops = sum(cost.flops for stage in forward_arithmetic(network, rate, 128)
                for cost in stage.costs)
    counted = 128 * 2 * (dynamic_flops(network.stem, network.blocks[0].expected_rates(rate)) + sum(
        dynamic_flops([op for op in block.ops if not op.dynamic], block.expected_rates(rate))
        for block in network.blocks))
    assert flops == pytest.approx(float(counted), rel=0.01)


def test_half_of_the_layers_move_little_more_than_half():
    moved = {rate: sum(cost.moved for stage in forward_arithmetic(spec('layer'), rate, 128)
                       for cost in stage.costs) for rate in (0.5, 1.0)}
    assert 0.5 < moved[0.5] / moved[1.0] < 0.7


@given(st.integers(0, 10**7), st.integers(1, 2048), st.integers(1, 160))
def test_tiles_are_those_that_are_launched(rows, columns, multiprocessors):
    launched = torch.ops.laud_mm_build.tile(rows, columns, 1, multiprocessors, True)
    tile = tile_for(rows, columns, multiprocessors)
    assert (tile.rows, tile.columns) == launched


def test_a_kernel_takes_what_its_tightest_limit_allows():
    limits = Limits(multiprocessors=100, memory_tb_s=1.0, cache_tb_s=1e9, shared_tb_s=1e9,
                    tflops=100.0, launch_us=2.0, fill_us=3.0)
    assert Cost(moved=1e9, ours=1).ms(limits) == pytest.approx(1.002)  # memory and launch
    tile = Tile(100, 50, 50, 25)  # of 4 warps
    assert (tile.read, tile.shared) == (150, 450)
    product = Product(rows=10000, depth=1000, columns=100, tile=tile)
    assert (product.tiles, product.flops) == (200, 2e9)
    assert product.ms(limits) == pytest.approx(0.02)  # products
    assert Cost(1.0, 1, 0, product).ms(limits) == pytest.approx(0.025)  # with launch and fill
    assert Cost(1e9, 0, 0, product).ms(limits) == pytest.approx(1.003)  # memory
    # A wave that is hardly used; what 200 tiles read; what passes through shared memory.
    assert replace(product, rows=10001).ms(limits) == pytest.approx(0.03)
    assert product.ms(replace(limits, cache_tb_s=1.0)) == pytest.approx(0.06)
    assert product.ms(replace(limits, shared_tb_s=1.0)) == pytest.approx(0.18)


def test_half_of_the_layers_take_no_longer_than_was_asked_for():
    limits = Limits()
    total = sum(stage.row(limits)['ms'] for stage in forward_arithmetic(spec('layer'), 0.5, 128))
    assert total < 4.5
    # Also where products reach no more than three quarters of their limits.
    slower = replace(limits, tflops=465.0, cache_tb_s=4.1, shared_tb_s=23.0)
    total = sum(stage.row(slower)['ms'] for stage in forward_arithmetic(spec('layer'), 0.5, 128))
    assert total < 4.5
