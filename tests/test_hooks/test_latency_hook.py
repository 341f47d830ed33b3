"""LatencyHook: FLOPs, rates and measured latency of every validation run."""
import json

import pytest
import torch
from torch.utils.data import DataLoader

from laud_mm.hooks import LatencyHook
from laud_mm.latency import AnalyticPredictor
from laud_mm.models.dynamic import force_rate

from ..toy import ToyClassifier, ToyImages, make_runner

KEYS = {'backbone_flops_g', 'backbone_flops_static_g', 'backbone_flops_fraction',
        'backbone_rate', 'backbone_latency_measured_ms', 'backbone_latency_static_ms',
        'backbone_latency_ratio'}


def validate(tmp_path, hook=None, model=None, **kwargs):
    runner = make_runner(tmp_path, [hook or LatencyHook()], val_images=4, model=model, **kwargs)
    return runner, runner.val()


def test_metrics_log_and_json_agree(tmp_path):
    runner, metrics = validate(tmp_path)
    assert KEYS <= set(metrics) and metrics['accuracy'] == 0.5
    report = json.loads(next(tmp_path.rglob('val_iter_0.json')).read_text())
    assert report['images'] == 4 and report['measured']['dynamic']['repeats'] == 4
    assert report['flops_g'] == pytest.approx(metrics['backbone_flops_g'])
    assert report['measured']['ratio'] == pytest.approx(metrics['backbone_latency_ratio'])
    assert report['stamp']['torch'] == torch.__version__
    assert len(report['blocks']) == 16
    scalars = next(tmp_path.rglob('scalars.json')).read_text()
    assert all(key in scalars for key in KEYS)


def test_flops_and_rates_are_those_of_the_decisions(tmp_path):
    model = ToyClassifier(paradigm='channel')
    with force_rate(model.backbone, 0.5):
        _, metrics = validate(tmp_path, model=model)
    model.eval()
    with torch.no_grad(), force_rate(model.backbone, 0.5):
        model.backbone(torch.rand(1, 3, 32, 32))
    cost = model.backbone.record.cost()
    assert metrics['backbone_rate'] == pytest.approx(0.5)
    assert metrics['backbone_flops_fraction'] == pytest.approx(cost.fraction.item(), rel=1e-5)
    assert metrics['backbone_flops_g'] == pytest.approx(cost.flops.item() / 1e9, rel=1e-5)


def test_each_image_counts_at_its_own_size(tmp_path):
    sizes = [(32, 32), (64, 96), (33, 47)]
    runner = make_runner(tmp_path, [LatencyHook()], val_images=1)
    runner.val_loop.dataloader = DataLoader(ToyImages(0, sizes=sizes), batch_size=1)
    metrics = runner.val()
    backbone = runner.model.backbone
    expected = sum(backbone.op_specs(s).static_flops for s in sizes) / len(sizes)
    assert metrics['backbone_flops_static_g'] == pytest.approx(expected / 1e9, rel=1e-6)


def test_timing_can_be_left_out(tmp_path):
    _, metrics = validate(tmp_path, LatencyHook(interval=0))
    assert 'backbone_flops_g' in metrics and 'backbone_latency_ratio' not in metrics


def test_timing_leaves_no_trace_in_the_model(tmp_path):
    runner, _ = validate(tmp_path)
    backbone = runner.model.backbone
    assert not backbone._forward_hooks and not backbone.current_execution().static


def test_save_best_can_use_the_latency(tmp_path):
    hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', rule='less',
                                 save_best='backbone_flops_g'))
    make_runner(tmp_path, [LatencyHook()], val_images=2, default_hooks=hooks).train()
    assert list(tmp_path.glob('best_backbone_flops_g_epoch_1.pth'))


def test_skipping_is_measured_to_be_faster_than_static(tmp_path):
    model = ToyClassifier(base_channels=32, paradigm='layer')
    model.head = torch.nn.Linear(1024, 4)
    with force_rate(model.backbone, 0.0):
        runner = make_runner(tmp_path, [LatencyHook(repeats=5)], val_images=1, model=model)
        runner.val_loop.dataloader = DataLoader(ToyImages(3, size=160), batch_size=1)
        metrics = runner.val()
    assert metrics['backbone_latency_ratio'] < 0.9


@pytest.mark.parametrize('field', ['interval', 'warmup', 'repeats'])
def test_bad_arguments_are_named(field):
    with pytest.raises(ValueError, match=f'{field} must be an int >= .*got -1'):
        LatencyHook(**{field: -1})


# The predicted half.

def test_predictions_stand_beside_the_measurement(tmp_path):
    hook = LatencyHook(devices=['V100', 'TX2'])
    model = ToyClassifier(paradigm='spatial')
    with force_rate(model.backbone, 0.3):
        runner, metrics = validate(tmp_path, hook, model)
    keys = {f'backbone_latency_predicted_{kind}/{device}' for device in ('V100', 'TX2')
            for kind in ('ms', 'static_ms', 'ratio')}
    assert keys <= set(metrics)
    report = json.loads(next(tmp_path.rglob('val_iter_0.json')).read_text())
    for device, predicted in report['predicted'].items():
        assert metrics[f'backbone_latency_predicted_ms/{device}'] == predicted['latency_ms']
        assert predicted['ratio'] == pytest.approx(predicted['latency_ms']
                                                   / predicted['static_ms'])
        assert len(predicted['blocks_ms']) == len(report['blocks'])
    assert next(tmp_path.rglob('val_iter_0.png')).stat().st_size > 1000
    scalars = next(tmp_path.rglob('scalars.json')).read_text()
    assert all(key in scalars for key in keys)


def test_predictions_follow_the_recorded_rates(tmp_path):
    predicted = []
    for rate in (0.0, 0.5, 1.0):
        model = ToyClassifier(paradigm='layer')
        with force_rate(model.backbone, rate):
            _, metrics = validate(tmp_path, LatencyHook(interval=0, devices='TX2'), model)
        predicted.append(metrics['backbone_latency_predicted_ms/TX2'])
        spec = model.backbone.op_specs((32, 32))
        if rate in (0.0, 1.0):
            expected = AnalyticPredictor('TX2').predict(spec, rate, 1).latency_per_image_ms
            assert predicted[-1] == pytest.approx(expected, rel=1e-6)
    assert predicted == sorted(predicted)


def test_each_image_is_predicted_at_its_own_size(tmp_path):
    sizes = [(32, 32), (64, 96), (33, 47)]  # the last counts as (64, 64)
    model = ToyClassifier(paradigm='layer')
    runner = make_runner(tmp_path, [LatencyHook(interval=0, devices='V100')], val_images=1,
                         model=model)
    runner.val_loop.dataloader = DataLoader(ToyImages(0, sizes=sizes), batch_size=1)
    with force_rate(model.backbone, 1.0):
        metrics = runner.val()
    model = AnalyticPredictor('V100')
    expected = [model.predict(runner.model.backbone.op_specs(s), 1.0, 1).latency_per_image_ms
                for s in ((32, 32), (64, 96), (64, 64))]
    assert metrics['backbone_latency_predicted_ms/V100'] == pytest.approx(sum(expected) / 3)


@pytest.mark.parametrize('kwargs, message', [
    (dict(devices='V99'), 'device must be one of'), (dict(batch=0), 'batch must be a positive')])
def test_bad_predictions_are_refused_before_the_run(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LatencyHook(**kwargs)
