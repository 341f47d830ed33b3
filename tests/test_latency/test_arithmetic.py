"""The arithmetic of a forward pass on a GPU follows from the programs and stands in the docs."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laud_mm.latency.arithmetic import Cost, Limits, forward_arithmetic, table, tile_for
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
    launched = torch.ops.laud_mm_build.tile(rows, columns, 1, multiprocessors)
    assert tile_for(rows, columns, multiprocessors) == launched


def test_a_kernel_takes_what_its_tightest_limit_allows():
    limits = Limits(multiprocessors=100, memory_tb_s=1.0, cache_tb_s=1.0, tflops=100.0,
                    launch_us=2.0)
    assert Cost(moved=1e9, ours=1).ms(limits) == pytest.approx(1.002)  # memory and launch
    assert Cost(flops=1e11, tiles=200, intensity=1e6).ms(limits) == pytest.approx(1.0)  # products
    assert Cost(flops=1e11, tiles=200, intensity=50).ms(limits) == pytest.approx(2.0)  # cache
    assert Cost(flops=1e11, tiles=101, intensity=1e6).ms(limits) == pytest.approx(1.98, rel=0.01)
