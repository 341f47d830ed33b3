"""Calibration: random steps are measured, fitted and checked; the file is stamped."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm.latency.calibrated import CalibratedPredictor, load_predictor, save_calibration
from laud_mm.latency.measure import device_stamp
from laud_mm.latency.step_model import (
    CONTEXT_TERMS,
    NO_CONTEXT,
    StepModel,
    step_contexts,
    step_features,
    step_terms,
)
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet, LAUDT2TViT
from laud_mm.profiling.calibrate import calibrate, fit_steps, measure_nets, random_net
from laud_mm.profiling.step_clock import net_calls, time_steps
from laud_mm.specs import STEP_KINDS, Case, StepCall, network_spec, resnet_spec
from laud_mm.specs.bottleneck_program import BREAK_EVEN

from ..conftest import TINY_REGNET, TINY_T2T

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / 'benchmarks' / 'results').glob('calibration-*.json'))
PARADIGMS = ('layer', 'channel', 'spatial', 'both')


def drawn_calls(count, seed=0):
    """The steps of random networks at expected work, dynamic and static."""
    rng, calls = np.random.default_rng(seed), []
    for _ in range(count):
        name = rng.choice(('resnet50', 'regnety_400mf', 't2t_vit_14'))
        paradigms = ('token', 'head', 'layer') if name == 't2t_vit_14' else PARADIGMS
        side, batch = int(rng.integers(64, 256)), int(rng.integers(1, 9))
        spec = network_spec(name, (side, side), str(rng.choice(paradigms)))
        for block in spec.blocks:
            rates = block.expected_rates(float(rng.uniform(0.1, 1)))
            for route in block.shape.routes(Case(block.shape, block.in_size, batch)):
                calls += block.calls(rates, batch, route)
            calls += block.static_calls(batch)
        calls += spec.outside_calls(batch)
    return calls


@pytest.fixture(scope='module')
def roofline():
    """A made-up machine: every step costs 5 us and a share of its sizes' product."""
    weights = {}
    for key in {*STEP_KINDS, *(call.key for call in drawn_calls(30))}:
        sizes = STEP_KINDS[key.split('/')[0]].sizes
        weights[key] = {'1': 5e-3}
        if sizes:
            weights[key][' '.join(f'{s}^1' for s in sizes[:3])] = 1e-9
    return StepModel(weights, 2)


@pytest.fixture
def calibration(tmp_path, roofline):
    """A calibration file of the made-up machine, stamped as this one."""
    path = tmp_path / 'here.json'
    save_calibration(path, roofline, device_stamp('cpu'), 'fp32', [])
    return path


@pytest.mark.parametrize('net', [
    *(lambda p=p: LAUDResNet(50, base_channels=8, paradigm=p) for p in (*PARADIGMS, None)),
    lambda: LAUDResNet(50, base_channels=8, paradigm='channel', mask_before_norm=True),
    *(lambda p=p: LAUDRegNet(TINY_REGNET, paradigm=p) for p in PARADIGMS),
    *(lambda p=p: LAUDT2TViT(TINY_T2T, img_size=64, token_dim=16, paradigm=p)
      for p in ('token', 'head', 'layer', ('token', 'head', 'layer')))])
def test_every_step_of_a_net_is_timed_where_it_runs(net):
    net, x = net().eval(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        dynamic, static = time_steps(net, x, 0.5, warmup=0, repeats=1)
    assert [c.kind for c in static.calls] == [c.kind for c in net_calls(net, x, None)]
    for timed in (dynamic, static):  # `time_steps` holds them to the steps that ran
        assert len(timed.latency_ms) == len(timed.calls) and min(timed.latency_ms) > 0
        assert sum(timed.latency_ms) == pytest.approx(timed.total_ms)


def test_a_net_that_runs_other_steps_is_noticed(monkeypatch):
    net = LAUDResNet(50, base_channels=8).eval()
    monkeypatch.setattr('laud_mm.profiling.step_clock.net_calls', lambda *_: [])
    with torch.no_grad(), pytest.raises(RuntimeError, match='must run the steps of its programs'):
        time_steps(net, torch.randn(1, 3, 64, 64), 0.5, 0, 1)


def test_random_nets_differ_and_can_be_drawn_again():
    import random
    drawn = [[(type(net).__name__, size, batch, len(rates)) for net, size, rates, batch in (
        random_net(rng) for _ in range(4))] for rng in (random.Random(1), random.Random(1))]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 1


def test_fit_finds_a_machine_again(roofline):
    def rows(seed):
        return [dict(kind=c.kind, variant=list(c.variant), sizes=list(c.sizes), near=c.near,
                     context=NO_CONTEXT, measured_ms=roofline.latency_ms(c, NO_CONTEXT))
                for c in drawn_calls(25, seed)]
    fitted = fit_steps(rows(0), units=2)
    errors = [fitted.latency_ms(StepCall(r['kind'], tuple(r['sizes']), tuple(r['variant'])),
                                NO_CONTEXT) / r['measured_ms'] - 1 for r in rows(1)]
    assert np.mean(np.abs(errors) < 0.15) > 0.9
    assert all(w > 0 for own in fitted.weights.values() for w in own.values())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_term_falls_when_a_size_rises(data):
    kind = data.draw(st.sampled_from(sorted(set(STEP_KINDS) - {'block'})))
    sizes = [data.draw(st.floats(0, 1e6)) for _ in STEP_KINDS[kind].sizes]
    larger = [size + data.draw(st.floats(0, 1e5)) for size in sizes]
    before, after = step_features(kind, [sizes, larger], [NO_CONTEXT, NO_CONTEXT], units=2)
    assert len(before) == len(step_terms(kind))
    assert (after >= before * (1 - 1e-9)).all()


def test_a_step_is_priced_by_its_own_variant():
    model = StepModel({f'rows1x1/1/{listed}': {'1': 1.0 + listed} for listed in (0, 1)}, 2)
    prices = [model.step_ms(StepCall('rows1x1', (8.0,) * 3, (1, listed)), NO_CONTEXT)
              for listed in (0, 1)]
    assert prices == [1.0, 2.0]


@pytest.mark.parametrize('network', ['resnet50', 'regnety_400mf', 't2t_vit_14'])
def test_more_ran_before_a_step_of_a_larger_net(network):
    def contexts(batch, weights_m=None):
        spec = network_spec(network, paradigm='layer')
        calls = spec.outside_calls(batch)
        for block in spec.blocks:
            calls += block.static_calls(batch)
        return step_contexts(calls, weights_m)
    one, four, far = contexts(1), contexts(4), contexts(1, np.inf)
    assert (one >= 0).all() and (four >= one - 1e-9).all() and (four > one).any()
    assert (far >= one).all() and (far[:, :2] > one[:, :2]).any()


def test_alternatives_of_a_step_have_the_same_before_them():
    calls = [StepCall('relu', (64.0, 64.0), (1,), 1.0, 'a'),
             *(StepCall('rows1x1', (rows, 64.0, 64.0), (1, 1), 0.5, 'b') for rows in (0.0, 64.0))]
    shared = ['per value' not in term for term in CONTEXT_TERMS]
    none, all_of_it = step_contexts(calls)[1:, shared]
    assert (none == all_of_it).all() and none.any()


def test_a_step_without_work_costs_its_overhead():
    calls = drawn_calls(10)
    model = StepModel({call.key: dict.fromkeys(step_terms(call.kind), 1.0) for call in calls}, 2)
    for call in calls:
        idle = StepCall(call.kind, (0.0, *call.sizes[1:]), call.variant)
        if call.sizes and all(call.sizes):
            assert model.step_ms(idle, NO_CONTEXT) == 1 < model.step_ms(call, NO_CONTEXT)


@pytest.fixture(scope='module', params=['made up', *(path.name for path in COMMITTED)])
def predictor(request, roofline, tmp_path_factory):
    """Of the made-up machine, and of every calibration that results hold."""
    path = ROOT / 'benchmarks' / 'results' / request.param
    if request.param == 'made up':
        path = tmp_path_factory.mktemp('calibration') / 'here.json'
        save_calibration(path, roofline, device_stamp('cpu'), 'fp32', [])
    return CalibratedPredictor(path, any_machine=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_predictions_rise_with_rate_batch_resolution_and_channels(predictor, data):
    draw = data.draw
    network = draw(st.sampled_from(('resnet50', 'regnety_400mf')))
    paradigm = draw(st.sampled_from(PARADIGMS))
    # Beyond, other steps run: see `Program.break_even`.
    rates = st.floats(0, BREAK_EVEN['picked'])
    low, high = sorted((draw(rates), draw(rates)))
    batch, side = draw(st.integers(1, 16)), draw(st.integers(40, 256))

    def total(rate, batch, size, width=64):
        spec = network_spec(network, size, paradigm) if network == 'regnety_400mf' else \
            resnet_spec(50, size, base_channels=width, stem_channels=64, paradigm=paradigm)
        return predictor.predict(spec, rate, batch).latency_per_image_ms * batch
    base = total(low, batch, (side, side))
    assert total(high, batch, (side, side)) >= 0.98 * base
    assert total(low, batch + 1, (side, side)) >= 0.98 * base
    assert total(low, batch, (side + 5, side)) >= 0.98 * base
    assert total(low, batch, (side, side), 64 + draw(st.sampled_from((8, 16, 64)))) >= 0.98 * base


@pytest.mark.parametrize('path', COMMITTED, ids=lambda path: path.name)
def test_the_page_says_what_a_committed_calibration_reached(path):
    page, total = (ROOT / 'docs' / 'latency.md').read_text(), json.loads(
        path.read_text())['validation'][-1]
    assert total['kind'] == 'all' and total['steps'] >= 500 and total['mean_error'] < 0.15
    rows = {line.split('`')[1]: line for line in page.splitlines()
            if line.startswith('|') and f'`{path.name}`' in line}
    assert f'| {total["steps"]} steps' in rows[path.name]
    assert f'{100 * total["within_15_percent"]:.0f} % within 15 %' in rows[path.name]
    assert f'| {100 * total["mean_error"]:.0f} % |' in rows[path.name]


@pytest.mark.parametrize('path', sorted((ROOT / 'benchmarks' / 'results').glob('compare-*.json')),
                         ids=lambda path: path.name)
def test_the_page_says_what_a_committed_comparison_showed(path):
    page = (ROOT / 'docs' / 'latency.md').read_text()
    rows = json.loads(path.read_text())['rows']
    for net, key in (('dynamic', 'error'), ('static', 'static_error')):
        errors = np.abs([row[key] for row in rows])
        line, = (line for line in page.splitlines() if line.startswith(f'| {len(rows)} settings')
                 and f'`{path.name}`' in line and f', {net} |' in line)
        assert f'{100 * np.mean(errors <= 0.05):.0f} % within 5 %' in line
        assert f'{100 * np.mean(errors <= 0.1):.0f} % within 10 %' in line
        assert f'worst {100 * errors.max():.0f} %' in line


def test_a_calibrated_device_predicts_any_network(calibration):
    predictor = load_predictor(str(calibration))
    for network in ('resnet50', 'resnet101', 'regnety_400mf', 't2t_vit_14'):
        for paradigm in ('layer', *(PARADIGMS if network[0] == 'r' else ('token', 'head')), None):
            report = predictor.predict(network_spec(network, paradigm=paradigm), 0.5, 2)
            assert report.latency_per_image_ms > 0
            assert sum(op.latency_ms for b in report.blocks for op in b.ops) / 2 == pytest.approx(
                report.blocks_latency_per_image_ms)


def test_only_what_runs_is_priced(calibration):
    """Channels are picked up to the share at which that stops to pay; beyond it all is computed."""
    predictor = load_predictor(str(calibration))
    spec = network_spec('resnet50', paradigm='channel')

    def kernels(rates, ops='ops'):
        report = predictor.predict(spec, rates, 4)
        return {op.kernel for block in report.blocks for op in getattr(block, ops)}
    picking, full = {'picked1x1', 'picked3x3'}, {'rows1x1', 'rows3x3'}
    assert picking | {'channel_masker'} <= kernels(0.3) and 'rows3x3' not in kernels(0.3)
    assert full | {'channel_masker', 'mask_channels'} <= kernels(0.9)
    for rates in (0.9, [None] * 16, 1.0):
        assert full <= kernels(rates) and not picking & kernels(rates)
    assert {'conv1x1', 'conv3x3'} <= kernels(0.3, 'static_ops')


@pytest.mark.parametrize('change, message', [
    (dict(torch='1.0.0'), 'was calibrated with torch 1.0.0, here is'),
    (dict(name='Another CPU'), "was calibrated on 'Another CPU', here is")])
def test_a_calibration_of_another_machine_is_refused(calibration, change, message):
    content = json.loads(calibration.read_text())
    content['stamp'].update(change)
    calibration.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_predictor(str(calibration))
    assert load_predictor(str(calibration), any_machine=True).model.weights


@pytest.mark.parametrize('change, message', [
    (dict(version=99), 'version 3, got .* version 99'), (dict(format='x'), 'must have format'),
    (dict(weights=None), None)])
def test_a_file_that_is_no_calibration_is_refused(calibration, change, message):
    content = json.loads(calibration.read_text())
    content.update(change)
    if message is None:
        del content['weights']
    calibration.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message or 'lacks weights'):
        CalibratedPredictor(calibration)


@pytest.mark.parametrize('kwargs, message', [
    (dict(precision='int8'), 'precision must be one of'), (dict(repeats=0), 'repeats must be'),
    (dict(held_out=2.0), 'held_out must be a number'), (dict(seconds=-1.0), 'seconds must be'),
    (dict(nets=0), 'nets must be'),
    (dict(device='cuda:99'), 'no CUDA device|')])
def test_bad_calibrations_are_refused_before_any_work(tmp_path, kwargs, message):
    if 'device' in kwargs and torch.cuda.is_available():
        pytest.skip('there is a CUDA device here')
    with pytest.raises(ValueError, match=message):
        calibrate(tmp_path / 'x.json', **kwargs)
    assert not (tmp_path / 'x.json').exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_steps_are_measured_on_cuda():
    nets, _ = measure_nets(3, 'cuda', torch.float16, repeats=1)
    assert all(row['measured_ms'] > 0 for rows in nets for row in rows)
