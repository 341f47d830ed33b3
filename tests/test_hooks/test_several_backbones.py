"""Hooks on models with several LAUD backbones, passes of one, or views of an image."""
import copy
import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseTTAModel
from torch import nn
from torch.utils.data import DataLoader

from laud_mm.hooks import ActivationHook, LatencyHook
from laud_mm.models.dynamic import force_rate
from laud_mm.models.losses import ActivationLoss

from ..toy import ToyClassifier, ToyEvaluator, ToyImages, make_runner


class Teaching(BaseModel):
    """A student beside a frozen teacher, as mmdet's SoftTeacher has them."""

    def __init__(self, predict_on='teacher'):
        super().__init__()
        self.student, self.teacher = ToyClassifier(), ToyClassifier(paradigm='spatial')
        self.teacher.requires_grad_(False)
        self.predict_on = predict_on

    def forward(self, inputs, labels=None, mode='tensor'):
        if mode == 'loss':
            with torch.no_grad():
                soft = self.teacher(inputs).argmax(1)
            return self.student(inputs, soft, mode='loss')
        nets = [self.student, self.teacher] if self.predict_on == 'both' else [
            getattr(self, self.predict_on)]
        return sum(net(inputs) for net in nets)


class Tracker(ToyClassifier):
    """Sees a key frame and a reference frame in every iteration."""

    def forward(self, inputs, labels=None, mode='tensor'):
        if mode != 'loss':
            return super().forward(inputs, labels, mode)
        key, reference = super().forward(inputs), super().forward(inputs[:1].flip(-1))
        self.records = [self.backbone.record]
        return dict(loss_cls=nn.functional.cross_entropy(key, labels),
                    loss_track=reference.square().mean())


def learn(tmp_path, model, **kwargs):
    """One iteration with an ActivationHook: the runner and its scalars."""
    runner = make_runner(tmp_path, [ActivationHook(**kwargs)], model=model, images=2, max_iters=1)
    runner.train()
    return runner, {k: v.current() for k, v in runner.message_hub.log_scalars.items()}


@pytest.mark.parametrize('kwargs', [{}, dict(backbone='student.backbone')], ids=['found', 'named'])
def test_the_loss_is_of_the_backbone_that_learns(tmp_path, kwargs):
    model = Teaching()
    runner, scalars = learn(tmp_path, model, **kwargs)
    cost = model.student.backbone.record.cost()
    assert scalars['train/activation_rate'] == pytest.approx(cost.mean_rate.item())
    warm, untouched = (net.backbone.maskers()[0] for net in (model.student, model.teacher))
    assert warm.layer.temperature != untouched.spatial.temperature


def test_a_backbone_that_is_not_there_is_named(tmp_path):
    for hook in (ActivationHook(backbone='backbone'), LatencyHook(backbone='backbone')):
        runner = make_runner(tmp_path, [hook], model=Teaching(), val_images=1)
        with pytest.raises(ValueError, match='backbone of .*Hook must be one of student.backbone, '
                                             "teacher.backbone, got 'backbone'"):
            runner.train() if isinstance(hook, ActivationHook) else runner.val()


def test_two_that_learn_must_be_told_apart(tmp_path):
    model = Teaching()
    model.teacher.requires_grad_(True)
    with pytest.raises(ValueError, match='student.backbone, teacher.backbone; name one'):
        learn(tmp_path, model)


def test_a_backbone_outside_the_losss_pass_is_named(tmp_path):
    with pytest.raises(RuntimeError, match='must run in the forward pass of the loss, Teaching'):
        learn(tmp_path, Teaching(), backbone='teacher.backbone')


def test_the_loss_covers_all_passes_of_an_iteration(tmp_path):
    model = Tracker(norm_eval=True)
    rates = iter((0.2, 0.9))
    forward = model.backbone.forward

    class Forced(nn.Module):
        def __call__(self, x):
            with force_rate(model.backbone, next(rates)):
                return forward(x)

    model.backbone.forward = Forced()
    seen = []
    model.backbone.register_forward_hook(lambda net, *_: seen.append(net.record.cost()))
    _, scalars = learn(tmp_path, model, target=0.5)
    key, reference = seen
    assert key.rates.shape[1] == 2 and reference.rates.shape[1] == 1
    both = key.together(seen)
    assert both.fraction.tolist() == pytest.approx(
        [*key.fraction.tolist(), *reference.fraction.tolist()])
    expected, fraction = ActivationLoss(0.5, bounds=False)(both, 0.0)
    assert fraction.item() == pytest.approx(both.fraction.mean().item(), rel=1e-5)
    assert scalars['train/activation_fraction'] == pytest.approx(fraction.item(), rel=1e-5)
    assert scalars['train/loss_activation'] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize('which, names', [
    ('teacher', ['']), ('student', ['']), ('both', ['student.backbone/', 'teacher.backbone/'])])
def test_latency_is_of_the_backbones_that_ran(tmp_path, which, names):
    runner = make_runner(tmp_path, [LatencyHook()], model=Teaching(which), val_images=2)
    metrics = runner.val()
    assert {k.partition('backbone_')[0] for k in metrics if 'backbone_flops' in k} == set(names)
    for path in tmp_path.rglob('val_iter_0*.json'):
        report = json.loads(path.read_text())
        assert report['images'] == 2 and report['measured']['dynamic']['repeats'] == 2


def test_a_model_whose_backbone_does_not_run_is_refused(tmp_path):
    runner = make_runner(tmp_path, [LatencyHook(backbone='student.backbone')], model=Teaching(),
                         val_images=1)
    with pytest.raises(ValueError, match='no LAUD backbone ran in the evaluation.*student'):
        runner.val()


class Views(BaseTTAModel):
    """Six views of every image, one after another."""

    def test_step(self, data):
        views = [data['inputs'], *(data['inputs'].flip(-1) for _ in range(5))]
        return self.merge_preds([self.module(view) for view in views])

    def merge_preds(self, predictions):
        return list(sum(predictions))


def test_figures_are_per_image_of_the_set_whatever_its_views(tmp_path):
    model = ToyClassifier()
    loaders = dict(test_dataloader=DataLoader(ToyImages(4), batch_size=2), test_cfg={},
                   test_evaluator=ToyEvaluator())
    flops, latencies = {}, {}
    for name, own in dict(plain=model, views=Views(model)).items():
        runner = make_runner(tmp_path / name, [LatencyHook()], model=own, **loaders)
        with force_rate(model.backbone, 1.0):
            metrics = runner.test()
        report = json.loads(next((tmp_path / name).rglob('test.json')).read_text())
        assert report['images'] == 4
        assert report.get('views_per_image', 1) == (6 if name == 'views' else 1)
        flops[name] = metrics['backbone_flops_g']
        latencies[name] = metrics['backbone_latency_measured_ms']
    assert flops['views'] == pytest.approx(6 * flops['plain'], rel=1e-5)
    assert latencies['views'] > 2 * latencies['plain']


@pytest.mark.parametrize('when', ['before_train', 'before_train_iter', 'after_train_iter',
                                  'before_val_epoch', 'after_val_iter', 'after_val_epoch'])
def test_a_model_is_copied_at_any_moment_of_a_training(tmp_path, when):
    import pickle
    from multiprocessing.reduction import ForkingPickler

    copies = []

    class Copier(Hook):
        priority = 'LOWEST'

    def copy_it(self, runner, *args, **kwargs):
        model = runner.model
        copies.append(copy.deepcopy(model))
        copies.append(pickle.loads(pickle.dumps(model)))
        ForkingPickler.dumps(model)

    setattr(Copier, when, copy_it)
    model = ToyClassifier()
    runner = make_runner(tmp_path, [ActivationHook(), LatencyHook(), Copier()], images=2, epochs=1,
                         val_images=1, model=model)
    runner.train()
    assert copies
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        for one in copies:
            again = ToyClassifier()
            again.load_state_dict(one.state_dict())
            assert torch.allclose(one.eval()(x), again.eval()(x), atol=1e-5)
