"""ActivationHook: the loss joins any model's, once, and schedules survive resume."""
import pytest
import torch

from laud_mm.hooks import ActivationHook
from laud_mm.hooks.activation_hook import TemperatureSchedule
from laud_mm.models.losses import ActivationLoss, activation_bounds

from ..toy import ToyClassifier, make_runner


class Capture:
    """Keeps the log variables and temperatures of every iteration."""

    def __init__(self):
        from mmengine.hooks import Hook

        class Watcher(Hook):
            priority = 'LOWEST'
            seen = []

            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                scalars = runner.message_hub.log_scalars
                masker = runner.model.backbone.maskers()[0].layer
                self.seen.append(dict(
                    outputs, temperature=masker.temperature,
                    **{k: v.current() for k, v in scalars.items() if 'activation' in k}))
        self.hook = Watcher()
        self.seen = self.hook.seen = []


def train(tmp_path, **kwargs):
    capture, arguments = Capture(), kwargs.pop('hook', {})
    runner = make_runner(tmp_path, [ActivationHook(**arguments), capture.hook], **kwargs)
    runner.train()
    return runner, capture.seen


def test_the_loss_joins_the_models_and_everything_is_logged(tmp_path):
    runner, seen = train(tmp_path, hook=dict(target=0.5))
    for log in seen:
        assert float(log['loss']) == pytest.approx(
            float(log['loss_cls']) + float(log['loss_activation']), rel=1e-5)
        fraction = log['train/activation_fraction']
        assert float(log['loss_activation']) == pytest.approx(10 * (fraction - 0.5)**2, rel=1e-3)
        assert log['train/activation_target'] == 0.5
    assert 0 < seen[-1]['train/activation_rate'] <= 1


def test_per_block_rates_reach_the_visualizer(tmp_path):
    runner, _ = train(tmp_path, hook=dict(interval=1))
    text = next(tmp_path.rglob('scalars.json')).read_text()
    assert 'activation_rate/layer1.0' in text and 'activation_rate/layer4.2' in text


def test_the_loss_brings_the_flops_fraction_to_the_target(tmp_path):
    model = ToyClassifier(norm_eval=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = 'masker' in name  # the task must not pull the other way
    _, seen = train(tmp_path, hook=dict(target=0.4, weight=10.0), images=8, epochs=15, model=model,
                    optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.03)))
    fractions = [log['train/activation_fraction'] for log in seen]
    assert fractions[0] > 0.85
    assert sum(fractions[-12:]) / 12 == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize('variant', ['with_cp', 'accumulate'])
def test_checkpointing_and_accumulation_do_not_change_the_loss(tmp_path, variant):
    kwargs = dict(backbone=dict(norm_eval=True, masker=dict(noise=False)))
    torch.manual_seed(3)
    _, plain = train(tmp_path / 'plain', **kwargs)
    torch.manual_seed(3)
    if variant == 'with_cp':
        kwargs['backbone']['with_cp'] = True
    else:
        kwargs['optim_wrapper'] = dict(optimizer=dict(type='SGD', lr=0.0), accumulative_counts=2)
    _, changed = train(tmp_path / variant, **kwargs)
    first = [float(log[0]['loss_activation']) for log in (plain, changed)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert float(changed[0]['loss']) == pytest.approx(
        float(changed[0]['loss_cls']) + first[1], rel=1e-5)


@pytest.mark.parametrize('loop', [dict(epochs=3), dict(max_iters=12)], ids=['epochs', 'iters'])
def test_the_temperature_falls_from_start_towards_end(tmp_path, loop):
    _, seen = train(tmp_path, hook=dict(temperature=dict(type='exponential', start=5, end=0.1)),
                    **loop)
    temperatures = [log['temperature'] for log in seen]
    assert len(temperatures) == 12
    assert temperatures[0] == 5
    assert temperatures[6] == pytest.approx((5 * 0.1)**0.5, rel=1e-6)
    assert temperatures == sorted(temperatures, reverse=True)


def test_auto_temperature_falls_for_fresh_maskers_and_is_fixed_for_loaded_ones(tmp_path):
    _, seen = train(tmp_path / 'fresh', hook=dict(temperature=dict(type='auto')))
    assert seen[0]['temperature'] == 5
    model = ToyClassifier()
    model.load_state_dict(model.state_dict())
    _, seen = train(tmp_path / 'loaded', hook=dict(temperature=dict(type='auto')), model=model)
    assert {log['temperature'] for log in seen} == {0.1}


def test_resume_goes_on_with_the_same_schedules_and_freezing(tmp_path):
    hook = dict(temperature=dict(type='auto'))
    backbone = dict(frozen_stages=1)
    _, whole = train(tmp_path / 'whole', hook=hook, epochs=3, backbone=backbone)

    class Killed(RuntimeError):
        pass

    class Kill(ActivationHook):
        def after_train_iter(self, runner, batch_idx, **kwargs):
            super().after_train_iter(runner, batch_idx, **kwargs)
            if runner.iter == 5:
                raise Killed
    checkpoint = dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1))
    with pytest.raises(Killed):
        make_runner(tmp_path / 'cut', [Kill(**hook)], epochs=3, backbone=backbone,
                    default_hooks=checkpoint).train()
    runner, rest = train(tmp_path / 'cut', hook=hook, epochs=3, backbone=backbone, resume=True,
                         default_hooks=checkpoint)
    assert len(rest) == 8  # from the end of epoch 1 on
    assert [log['temperature'] for log in rest] == [log['temperature'] for log in whole[4:]]
    # All maskers were loaded by the resume, but this training had been training them.
    assert runner.model.backbone.layer1[0].masker.layer.conv.weight.requires_grad


def test_nan_loss_stops_with_a_clear_error_and_keeps_checkpoints(tmp_path):
    model = ToyClassifier()
    torch.nn.init.constant_(model.head.bias, float('nan'))
    runner = make_runner(tmp_path, [ActivationHook()], model=model)
    with pytest.raises(FloatingPointError, match='not finite at iteration 1.*loss_cls'):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))


def test_a_second_activation_hook_is_refused(tmp_path):
    with pytest.raises(ValueError, match='must name one ActivationHook'):
        make_runner(tmp_path, [ActivationHook(), ActivationHook()]).train()


def test_a_model_without_laud_backbone_is_refused(tmp_path):
    model = ToyClassifier()
    model.backbone = torch.nn.Identity()
    with pytest.raises(ValueError, match='needs a LAUD backbone in the model, found: none'):
        make_runner(tmp_path, [ActivationHook()], model=model).train()


@pytest.mark.parametrize('kwargs, message', [
    (dict(target=1.5), 'target must be a number from 0 to 1, got 1.5'),
    (dict(target=0), 'target must be above 0'),
    (dict(weight=-1), 'weight must be a number >= 0, got -1'),
    (dict(interval=0), 'interval must be a positive int'),
    (dict(temperature=dict(type='linear')), "temperature.type must be one of 'auto'"),
    (dict(temperature=dict(end=0)), 'temperature.end must be a number > 0, got 0'),
])
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ActivationHook(**kwargs)


def test_bounds_hold_blocks_at_the_target_then_release_them():
    assert activation_bounds(0.4, 0.0) == pytest.approx((0.4, 0.4))
    low, high = activation_bounds(0.4, 0.165)
    assert (low, high) == pytest.approx((0.2, 0.7))
    for progress in (0.33, 0.5, 1.0):
        assert activation_bounds(0.4, progress) == pytest.approx((0, 1))


def test_loss_equals_the_formula_with_bounds():
    class Cost:
        rates = torch.zeros(3, 2)
        dynamic = (True, False, True)
        fraction = torch.tensor([0.5, 0.7])
        block_fractions = torch.tensor([[0.2, 0.4], [9.0, 9.0], [1.0, 0.8]])
    loss, fraction = ActivationLoss(0.5, weight=10, bounds=True)(Cost, progress=0.0)
    expected = (0.6 - 0.5)**2 + ((0.5 - 0.3)**2 + (0.9 - 0.5)**2) / 2
    assert loss.item() == pytest.approx(10 * expected, rel=1e-5)
    assert fraction.item() == pytest.approx(0.6)
    released, _ = ActivationLoss(0.5, weight=10, bounds=True)(Cost, progress=0.5)
    assert released.item() == pytest.approx(10 * 0.01, rel=1e-4)


def test_schedule_types():
    assert TemperatureSchedule('fixed', end=0.1)(0.3) == 0.1
    assert TemperatureSchedule('exponential', 5, 0.1)(1.0) == pytest.approx(0.1)
