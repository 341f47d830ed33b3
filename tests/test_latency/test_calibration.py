"""Calibration: random steps are measured, fitted and checked; the file is stamped."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm.latency.calibrated import CalibratedPredictor, load_predictor, save_calibration
from laud_mm import ops
from laud_mm.latency.executor import executor_steps, static_steps
from laud_mm.latency.measure import device_stamp
from laud_mm.latency.steps import (STEP_SIZES, NetCorrection, Step, StepModel, step_features,
                                   step_terms)
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet
from laud_mm.models.dynamic import force_rate
from laud_mm.profiling.calibrate import calibrate, draw_steps, fit_steps, measure_steps
from laud_mm.profiling.steps import StepProgram
from laud_mm.specs import network_spec, resnet_spec

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / 'benchmarks' / 'results').glob('calibration-*.json'))
PARADIGMS = ('layer', 'channel', 'spatial', 'both')


@pytest.fixture(scope='module')
def roofline():
    """A made-up machine: every step costs 5 us and a share of its sizes' product."""
    keys = {step.key for step in draw_steps(10)}
    weights = {}
    for key in keys:
        sizes = STEP_SIZES[key.split('/')[0]]
        weights[key] = {'1': 5e-3}
        if sizes:
            weights[key][' '.join(f'{s}^1' for s in sizes[:3])] = 1e-9
    return StepModel(weights, 2, NetCorrection(dict(conv1x1=1.2, relu=1.1), 1e-3, 0.2,
                                               (0.1, 0.2, 0.1), dict.fromkeys(keys, 3.0)))


@pytest.fixture
def calibration(tmp_path, roofline):
    """A calibration file of the made-up machine, stamped as this one."""
    path = tmp_path / 'here.json'
    save_calibration(path, roofline, device_stamp('cpu'), 'fp32', [])
    return path


@pytest.mark.parametrize('kind', [kind for kind in STEP_SIZES if kind != 'block'])
def test_every_kind_of_step_runs_at_the_sizes_it_says(kind):
    steps = [step for step in draw_steps(10, seed=3) if step.kind == kind]
    small = min(steps, key=lambda step: np.prod(step.sizes))
    program = StepProgram(small, 'cpu')
    program.prepare()
    program.run()
    assert len(program.sizes) == len(STEP_SIZES[kind])
    # Rounding apart, what is measured is what was asked for.
    assert np.allclose(program.sizes, small.sizes, rtol=0.35, atol=70)


def test_drawn_steps_cover_every_kind_and_differ():
    steps = draw_steps(12)
    assert {step.kind for step in steps} == set(STEP_SIZES)
    assert len({(step.key, step.sizes) for step in steps}) == len(steps) - 2  # 'block' thrice
    assert [s.sizes for s in draw_steps(12)] == [s.sizes for s in steps]
    assert [s.sizes for s in draw_steps(12, seed=1)] != [s.sizes for s in steps]


def test_fit_finds_a_machine_again(roofline):
    def rows(seed):
        return [dict(kind=s.kind, variant=list(s.variant), sizes=list(s.sizes),
                     measured_ms=roofline.alone_ms(s)) for s in draw_steps(300, seed)]
    fitted = fit_steps(rows(0), units=2)
    held_out = rows(1)
    errors = [fitted.alone_ms(Step(r['kind'], tuple(r['sizes']), tuple(r['variant'])))
              / r['measured_ms'] - 1 for r in held_out]
    assert np.mean(np.abs(errors) < 0.15) > 0.9
    assert all(w > 0 for own in fitted.weights.values() for w in own.values())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_term_falls_when_a_size_rises(data):
    kind = data.draw(st.sampled_from(sorted(set(STEP_SIZES) - {'block'})))
    sizes = [data.draw(st.floats(0, 1e6)) for _ in STEP_SIZES[kind]]
    larger = [size + data.draw(st.floats(0, 1e5)) for size in sizes]
    before, after = step_features(kind, [sizes, larger], units=2)
    assert len(before) == len(step_terms(kind))
    assert (after >= before * (1 - 1e-9)).all()


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
    low, high = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
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
def test_committed_calibrations_are_as_good_as_the_documentation_says(path):
    total = json.loads(path.read_text())['validation'][-1]
    assert total['kind'] == 'all' and total['steps'] >= 500
    assert total['within_15_percent'] >= 0.9


def counted_convolutions(run):
    """Rows and channels of the convolutions and linear layers that really ran."""
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.convolution.default and not args[6]:
                weight = args[1]
                rows = out.numel() // out.shape[1]
                seen.append(rows * weight.numel())
            elif func in (torch.ops.aten.addmm.default, torch.ops.aten.linear.default):
                a, b = args[1:] if func is torch.ops.aten.addmm.default else (args[0], args[1].T)
                seen.append(a.shape[0] * b.numel())
            return out
    with torch.no_grad(), Counter():
        run()
    return sum(seen)


def step_macs(steps):
    """Multiply-adds of the convolutions and linear layers among the steps."""
    total = 0
    for step in steps:
        taps = 49 if step.kind == 'conv7x7' else 9 if '3x3' in step.kind else 1
        if step.kind.startswith(('conv', 'rows', 'picked')):
            total += step.times * taps * np.prod(step.sizes[:3])
    return total


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('paradigm', PARADIGMS)
@pytest.mark.parametrize('network', ['resnet50', 'regnety_400mf'])
def test_steps_are_what_the_executor_runs(network, paradigm, batch):
    """The arithmetic of the predicted steps is that of the executor, within the random choice."""
    kwargs = dict(paradigm=paradigm)
    net = (LAUDResNet(50, **kwargs) if network == 'resnet50'
           else LAUDRegNet(network, **kwargs)).eval()
    x, spec = torch.rand(batch, 3, 128, 160), network_spec(network, (128, 160), paradigm)
    rate = 0.5
    with force_rate(net, rate), ops.use_references():
        ran = counted_convolutions(lambda: net(x))
    with torch.no_grad(), force_rate(net, rate):
        net(x)
    rates = [type(r)(**{k: float(torch.as_tensor(v).mean()) for k, v in vars(r).items()})
             for r in net.record.cost().block_rates]
    stem = step_macs([]) + sum(op.dense_flops for op in spec.stem) * batch
    expected = stem + sum(step_macs(executor_steps(block, rate, batch))
                          for block, rate in zip(spec.blocks, rates))
    # Squeeze-and-excitation and maskers run small linear layers besides.
    assert ran == pytest.approx(expected, rel=0.06)
    static = stem + sum(step_macs(static_steps(block, batch)) for block in spec.blocks)
    assert static == pytest.approx(batch * spec.static_flops, rel=0.01)


def test_a_calibrated_device_predicts_any_convolutional_network(calibration):
    predictor = load_predictor(str(calibration))
    for network in ('resnet50', 'resnet101', 'regnety_400mf', 'regnety_800mf'):
        for paradigm in (*PARADIGMS, None):
            report = predictor.predict(network_spec(network, paradigm=paradigm), 0.5, 2)
            assert report.latency_per_image_ms > 0
            assert sum(op.latency_ms for b in report.blocks for op in b.ops) / 2 == pytest.approx(
                report.blocks_latency_per_image_ms)


def test_a_block_that_is_always_on_is_costed_dense(calibration):
    predictor = load_predictor(str(calibration))
    spec = network_spec('resnet50', paradigm='channel')
    def kernels(rates):
        report = predictor.predict(spec, rates, 4)
        return {op.kernel for block in report.blocks for op in block.ops}
    dense, picked = kernels([None] * 16), kernels(1.0)
    assert {'conv1x1', 'conv3x3', 'channel_masker'} <= dense
    assert {'picked1x1', 'picked3x3', 'channel_masker'} <= picked
    assert not any(kernel.startswith(('picked', 'rows')) for kernel in dense)


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
    (dict(version=99), 'version 1, got .* version 99'), (dict(format='x'), 'must have format'),
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
    (dict(precision='int8'), 'precision must be one of'), (dict(blocks=0), 'blocks must be'),
    (dict(held_out=2.0), 'held_out must be a number'), (dict(rounds=0), 'rounds must be'),
    (dict(nets=0), 'nets must be'),
    (dict(device='cuda:99'), 'no CUDA device|')])
def test_bad_calibrations_are_refused_before_any_work(tmp_path, kwargs, message):
    if 'device' in kwargs and torch.cuda.is_available():
        pytest.skip('there is a CUDA device here')
    with pytest.raises(ValueError, match=message):
        calibrate(tmp_path / 'x.json', **kwargs)
    assert not (tmp_path / 'x.json').exists()


def test_transformers_are_not_calibrated(calibration):
    with pytest.raises(ValueError, match='predicts convolutional networks'):
        load_predictor(str(calibration)).predict(network_spec('t2t_vit_14'), 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_steps_are_measured_on_cuda():
    rows = measure_steps(draw_steps(10)[:40], 'cuda', torch.float16, rounds=1)
    assert all(row['measured_ms'] > 0 for row in rows if row['kind'] != 'block')
