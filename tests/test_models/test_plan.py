"""Plans: what `execution='auto'` runs densely, and that it does not change the result."""
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm import ops
from laud_mm.deploy import deploy
from laud_mm.latency.measure import device_stamp
from laud_mm.latency.plans import (
    BlockTimes,
    CalibratedPlan,
    ExecutionPlan,
    MeasuredPlan,
    active_share,
    load_plan,
    planned_routes,
)
from laud_mm.models.backbones import LAUDBottleneck, LAUDRegNetBottleneck, LAUDResNet
from laud_mm.models.dynamic import Decision, Execution, force_rate, replay, run_masked, run_program
from laud_mm.models.dynamic.run_table import RUN_TABLE
from laud_mm.profiling.make_plan import OneRoute, make_plan
from laud_mm.specs import BottleneckShape, Case

from ..conftest import ARCHS, randomize_norms
from .test_executors import PARADIGMS, assert_close


class UpTo(ExecutionPlan):
    """Skips up to a share of active units, in every block."""

    def __init__(self, limit):
        self.limit, self.asked = limit, []

    def times(self, case):
        return None

    def skips(self, case, program, decision, x):
        self.asked.append(case)
        return self.limit is None or active_share(decision) <= self.limit

    def fits(self, x):
        return True


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_route_equals_masked(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    groups, se_channels = draw(1, 1, 2, 12), draw(0, 0, 5)
    shape = BottleneckShape(
        'block', 0, in_channels=32, width=12, out_channels=32, stride=draw(1, 2),
        dilation=draw(1, 2), stride_in_conv1=draw(True, False), groups=groups,
        se_channels=se_channels, downsample=True, avg_down=draw(False, True),
        paradigms=draw(*PARADIGMS, 'layer+spatial', 'layer+channel', 'layer+spatial+channel'),
        spatial_granularity=data.draw(st.integers(1, 9)), channel_granularity=draw(1, 2, 3),
        mask_before_norm=groups == 1 and not se_channels and draw(True, False))
    block = draw(LAUDBottleneck, LAUDRegNetBottleneck)(shape, norm_cfg=dict(type='BN'))
    block = randomize_norms(block).double().eval()
    n, h, w = (data.draw(st.integers(1, high)) for high in (4, 20, 20))
    x, rate = torch.randn(n, 32, h, w, dtype=torch.float64), draw(0.0, 0.3, 0.7, 1.0)
    with torch.no_grad():
        decision = block.masker(x).map(lambda mask: torch.rand(mask.shape) < rate)
        masked = run_masked(block, x, decision)
        for route in shape.routes(block.case(x)):
            own = Execution(plan=OneRoute(route), override=lambda *_: decision)
            for owned in (False, True):
                y, *_ = run_program(block, x.clone(), own, block.weights()[0], owned)
                assert_close([y], [masked], 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9),
       st.sampled_from(('layer', 'spatial')), st.sampled_from((1, 2)))
def test_a_masker_decides_alike_by_itself_and_within_conv1(n, h, w, side, paradigm, stride):
    shape = BottleneckShape('block', 0, 32, 12, 32, stride=stride, downsample=True,
                            paradigms=paradigm, spatial_granularity=side)
    block = randomize_norms(LAUDBottleneck(shape, norm_cfg=dict(type='BN'))).eval()
    torch.nn.init.normal_(next(block.masker.children()).conv.weight, std=1.0)
    x = torch.randn(n, 32, h, w)
    with torch.no_grad():
        alone, fused = (run_program(block, x.clone(), Execution(plan=OneRoute(route)),
                                    block.weights()[0])
                        for route in shape.routes(block.case(x))[:2])
    for one, other in zip(alone[1].masks().values(), fused[1].masks().values(), strict=True):
        assert torch.equal(one, other)
    assert_close([fused[0]], [alone[0]], 1e-4)


@pytest.mark.parametrize('limit', [0.0, 0.5, 1.0], ids=['dense', 'mixed', 'skipping'])
@pytest.mark.parametrize('paradigm', PARADIGMS)
@ARCHS
def test_auto_execution_equals_masked(make_net, arch, paradigm, limit):
    net = make_net(arch, paradigm=paradigm, dtype=torch.float64)
    net.plan, x = UpTo(limit), torch.randn(3, 3, 65, 90, dtype=torch.float64)
    before = x.clone()
    with torch.no_grad():
        with force_rate(net, 0.6):
            planned = net(x)
        assert len(net.plan.asked) == len(net.blocks())
        net.execution = 'masked'
        with replay(net, net.record.decisions):
            assert_close(planned, net(x), 1e-9)
    assert torch.equal(x, before)


class RoutesRun:
    """A clock that notes which convolutions ran."""

    def __init__(self):
        self.kinds = set()

    def run(self, step, run):
        self.kinds.add(step.kind)
        RUN_TABLE[step.kind](run, step)


def computed(net, x):
    """How blocks ran: all channels and masks ('full'), 'listed', or nothing where modules ran."""
    clock = RoutesRun()
    with net.executing(clock=clock):
        net(x)
    names = dict(mask_channels='full', picked3x3='listed')
    return {name for kind, name in names.items() if kind in clock.kinds}


def test_a_block_computes_everything_where_more_is_on_than_its_break_even(make_net):
    net, x = make_net(paradigm='channel'), torch.randn(2, 3, 64, 64)
    with torch.no_grad(), force_rate(net, 0.5):
        net.plan = UpTo(0.4)
        assert computed(net, x) == {'full'}
        net.plan = UpTo(0.6)
        assert computed(net, x) == {'listed'}
        net.plan = UpTo(None)  # not in the plan
        assert computed(net, x) == {'listed'}
        net.plan, net.execution = UpTo(0.0), 'skipping'  # as asked for
        assert computed(net, x) == {'listed'}
        net.execution = 'auto'
        net.train()
        assert computed(net, x) == set()
        net.eval()
    with force_rate(net, 0.5):  # gradients are recorded
        assert computed(net, x) == {'listed'}


@pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-9), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize('arch, settings', [
    (50, {}), (50, dict(mask_before_norm=True)), (50, dict(channel_granularity=2)),
    ('regnety_400mf', {})], ids=str)
@pytest.mark.parametrize('rate', [0.3, 0.9, 1])
def test_beyond_its_break_even_a_block_masks_channels_and_runs_the_kernels_that_list(
        make_net, rate, arch, settings, dtype, tolerance):
    net = make_net(arch, dtype, paradigm='channel', **settings)
    net.execution, clock = 'auto', RoutesRun()
    with torch.no_grad(), force_rate(net, rate):
        x = torch.randn(2, 3, 64, 64, dtype=dtype)
        with net.executing(clock=clock):
            found = net(x)
        with net.executing(mode='masked'):
            assert_close(found, net(x), tolerance)
    assert not {'conv3x3', 'conv3x3_grouped'} & clock.kinds
    assert ('mask_channels' in clock.kinds) == (0.65 < rate < 1)
    assert any(kind.startswith('picked3x3') for kind in clock.kinds) == (rate == 0.3)


class NeverPays(ExecutionPlan):
    """Computing everything was faster in every block that was measured."""

    def times(self, case):
        return BlockTimes(1.0, (1.0,), (2.0,))


@pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')
@pytest.mark.parametrize('arch, settings', [
    (50, {}), (50, dict(mask_before_norm=True)), ('regnety_400mf', {})], ids=str)
def test_a_plan_runs_everything_on_the_route_that_it_times(make_net, arch, settings):
    net = make_net(arch, torch.float64, paradigm='channel', **settings)
    net.plan, clock = NeverPays(), RoutesRun()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad(), force_rate(net, 0.3):
        with net.executing(clock=clock):
            found = net(x)
        with net.executing(mode='masked'):
            assert_close(found, net(x), 1e-9)
    assert 'mask_channels' in clock.kinds and not {'conv3x3', 'conv3x3_grouped'} & clock.kinds
    block = net.blocks()[1]
    case = block.case(torch.zeros(2, block.shape.in_channels, 16, 16), True)
    full, skipping = planned_routes(case)
    assert full.compute == 'listed' and full not in skipping
    with torch.no_grad():
        deployed = deploy(net, plan=NeverPays())
        assert {made.program.route for made in deployed.blocks()} == {
            planned_routes(block.case(torch.zeros(1, block.shape.in_channels, 16, 16), True))[0]
            for block in net.blocks()}
        assert_close(deployed(x), net(x), 1e-9)


def test_on_a_gpu_the_expected_rate_decides_and_nothing_is_read(make_net):
    class Known(ExecutionPlan):
        limit, expected_rate = 0.4, 0.6

        def times(self, case):
            return BlockTimes(1.0, (self.limit, self.limit + 1e-9), (0.5, 2.0))

        def fits(self, x):
            return True

    class Cuda:  # what the choice may ask of a tensor
        is_cuda = True
    case = Case(make_net(paradigm='both').blocks()[0].shape, (16, 16), 2, 'cuda')
    unread = torch.empty(2, 4, device='meta')  # to read it is an error
    decision, plan = Decision(patches=unread, channels=unread), Known()
    program = case.shape.program(case)
    assert plan.skips(case, program, decision, Cuda())  # 0.6 of the patches, 0.6 of the channels
    plan.limit = 0.3
    assert not plan.skips(case, program, decision, Cuda())


@pytest.mark.parametrize('skipping_ms, expected', [
    ((1, 2, 3), 1.0), ((1, 2, 4), 1.0), ((2, 3, 5), 0.75), ((1, 6, 8), 0.38), ((5, 6, 7), 0.0),
    ((5, 3, 3), 0.0)], ids=str)
def test_break_even_is_where_skipping_stops_to_pay(skipping_ms, expected):
    times = BlockTimes(4.0, (0.2, 0.5, 1.0), skipping_ms)
    assert times.break_even == pytest.approx(expected)


def test_the_share_of_active_units_is_the_product_of_the_masks_means():
    patches, channels = torch.tensor([[[1, 0]], [[1, 1]]]), torch.tensor([[1, 0], [1, 0]])
    assert active_share(Decision(patches=patches)) == pytest.approx(0.75)
    assert active_share(Decision(patches=patches, channels=channels)) == pytest.approx(0.375)


NET = dict(depth=50, base_channels=8, paradigm=('layer', 'channel', 'spatial', None),
           mask_before_norm=True)


@pytest.fixture(scope='module')
def plan():
    return make_plan([LAUDResNet(**NET)], (64, 64), (1, 2), rates=(0.5, 1.0), warmup=0, repeats=1)


@pytest.fixture
def plan_file(plan, tmp_path):
    plan.save(tmp_path / 'plan.json')
    return tmp_path / 'plan.json'


def test_a_plan_survives_its_file_and_knows_each_block(plan, plan_file, monkeypatch):
    net = LAUDResNet(**NET, plan=str(plan_file)).eval()
    assert net.plan.blocks == plan.blocks
    # Two shapes a stage, or three (the first block of a stage, and the others), two batches.
    assert len(plan.blocks) == 2 * 2 * 3
    assert {case.batch for case in plan.blocks} == {1, 2}
    found = []
    times = MeasuredPlan.times
    monkeypatch.setattr(MeasuredPlan, 'skips', lambda self, case, program, decision, x: (
        found.append(times(self, case) is not None), True)[1])
    with torch.no_grad():
        net(torch.randn(2, 3, 64, 64))
        assert found == [True] * 13
        net(torch.randn(2, 3, 64, 96))
    assert found[13:] == [False] * 13


def test_a_plan_is_about_one_type(plan_file):
    plan = load_plan(plan_file)
    assert plan.fits(torch.zeros(1)) and not plan.fits(torch.zeros(1).double())


@pytest.mark.parametrize('change, message', [
    (dict(format='other'), "plan must be a file of .*latency.py plan.*'other'"),
    (dict(version=7), "must have format 'laud_mm plan' version 3, got .* version 7: plan again"),
    (dict(blocks=[dict(case={})]), 'complete plan, plan again'),
    (dict(precision='int8'), "precision among fp32, fp16, bf16, got 'int8'"),
    (dict(expected_rate=2), 'expected_rate must be a number from 0 to 1, got 2'),
    (dict(stamp=dict(torch='1.0')), 'torch 1.0, here is .*: plan again, or allow any machine'),
    (dict(stamp=dict(name='Abacus')), "planned on 'Abacus', here is"),
    (dict(stamp=dict(threads=99)), 'planned with 99 threads, here are')], ids=str)
def test_a_plan_that_does_not_fit_is_refused(plan_file, change, message):
    content = json.loads(plan_file.read_text())
    stamp = dict(content['stamp'], **change.get('stamp', {}))
    plan_file.write_text(json.dumps(dict(content, **dict(change, stamp=stamp))))
    with pytest.raises(ValueError, match=message):
        LAUDResNet(**NET, plan=str(plan_file))
    if 'stamp' in change:
        assert load_plan(plan_file, any_machine=True).stamp == stamp


@pytest.mark.parametrize('content', [None, 'no JSON', '[]'])
def test_a_file_that_is_no_plan_is_named(tmp_path, content):
    path = tmp_path / 'plan.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match='plan must be a file of .*plan.json'):
        LAUDResNet(50, plan=str(path))


@pytest.mark.parametrize('execution', ['masked', 'skipping'])
def test_a_plan_needs_auto_execution(plan_file, execution):
    with pytest.raises(ValueError, match=f"plan needs execution='auto', got '{execution}'"):
        LAUDResNet(50, execution=execution, plan=str(plan_file))


def test_a_calibrations_predictions_make_a_plan():
    class Predictor:
        """Skipping costs 1 ms and 4 ms for all units; fused 1 ms more; dense costs 3 ms."""
        precision, stamp = 'fp32', device_stamp('cpu')

        def route_ms(self, block, batch, route, rates):
            return 3.0 if route.compute == 'dense' else 1 + 4 * rates.unit**0.5 \
                + route.fused_masker
    plan = CalibratedPlan(Predictor())
    both = BottleneckShape('block', 0, 32, 8, 32, paradigms='both')
    times = plan.times(Case(both, (8, 8), 1))
    assert times.break_even == pytest.approx(0.25)
    spatial = plan.times(Case(replace(both, paradigms='spatial'), (8, 8), 1))
    assert not spatial.route.fused_masker
    assert plan.fits(torch.zeros(1)) and not plan.fits(torch.zeros(1).half())
