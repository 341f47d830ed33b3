"""The distillation classifier: its loss by hand, and a teacher that nothing touches."""
import copy
import math

import pytest
import torch
from mmengine.config import Config
from torch.utils.data import DataLoader

from laud_mm.checkpoints import CheckpointError
from laud_mm.hooks import ActivationHook
from laud_mm.models.find import find_backbone
from laud_mm.models.losses import DistillationLoss

from ..toy import make_runner

pytest.importorskip('mmpretrain')


def config(checkpoint='teacher.pth', **kwargs):
    return dict(
        dict(type='laud_mm.DistillationClassifier', teacher=dict(checkpoint=str(checkpoint)),
             backbone=dict(type='laud_mm.LAUDResNet', depth=50, base_channels=8,
                           out_indices=(3, )),
             neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=4, in_channels=256,
                       loss=dict(type='CrossEntropyLoss'))), **kwargs)


def build(cfg):
    from mmengine.registry import MODELS, init_default_scope
    init_default_scope('mmpretrain')
    return MODELS.build(copy.deepcopy(cfg))


def static_classifier():
    cfg = config(type='mmpretrain.ImageClassifier')
    cfg.pop('teacher')
    cfg['backbone'].update(paradigm=None, zero_init_residual=False)
    model = build(cfg)
    model.init_weights()
    return model


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A static classifier and its checkpoint."""
    torch.manual_seed(5)
    model, path = static_classifier(), tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return model.eval(), path


def student(path, **kwargs):
    model = build(config(path, **kwargs))
    model.init_weights()
    return model


def batch(count=3):
    from mmpretrain.structures import DataSample
    return (torch.rand(count, 3, 32, 32),
            [DataSample().set_gt_label(i % 4) for i in range(count)])


def divergence(teacher, student, temperature):
    """KL(teacher || student) of softened logits, one image and class at a time."""
    total = 0.0
    for row_t, row_s in zip((teacher / temperature).tolist(), (student / temperature).tolist()):
        norm_t, norm_s = (sum(math.exp(v) for v in row) for row in (row_t, row_s))
        for t, s in zip(row_t, row_s):
            p = math.exp(t) / norm_t
            total += p * (math.log(p) - math.log(math.exp(s) / norm_s))
    return total / len(teacher)


def test_the_loss_is_the_papers_divergence_from_the_teacher():
    teacher, student = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5).double()
    loss = DistillationLoss(weight=0.5, temperature=4.0)(student, teacher)
    assert loss.item() == pytest.approx(0.5 * 16 * divergence(teacher, student, 4.0), rel=1e-9)
    swapped = DistillationLoss(0.5, 4.0)(teacher, student)
    assert loss.item() != pytest.approx(swapped.item(), rel=1e-3)
    assert DistillationLoss()(student, student).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_is_weight_times_temperature_times_the_difference_of_probabilities():
    teacher = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    DistillationLoss(0.5, 4.0)(student, teacher).backward()
    soft_s, soft_t = ((x.detach() / 4).softmax(1) for x in (student, teacher))
    torch.testing.assert_close(student.grad, 0.5 * 4 * (soft_s - soft_t) / 3)
    assert teacher.grad is None


@pytest.mark.parametrize('arguments, message', [
    (dict(weight=-1), 'weight must be a number >= 0, got -1'),
    (dict(temperature=0), 'temperature must be a number > 0, got 0'),
    (dict(temperature='4'), "temperature must be a number > 0, got '4'")])
def test_bad_loss_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillationLoss(**arguments)


def test_the_classifier_adds_the_loss_of_its_own_logits_against_the_teachers(teacher):
    net, path = teacher
    model = student(path, loss_kd=dict(weight=0.7, temperature=2.0)).eval()
    model.head.fc.weight.data.normal_()
    images, samples = batch()
    losses = model.loss(images, samples)
    with torch.no_grad():
        expected = DistillationLoss(0.7, 2.0)(model(images), net(images))
    assert set(losses) == {'loss', 'loss_kd'}
    torch.testing.assert_close(losses['loss_kd'].detach(), expected)
    plain = model.head.loss(model.extract_feat(images), samples)['loss']
    torch.testing.assert_close(losses['loss'], plain)


def test_the_student_starts_as_its_teacher(teacher):
    net, path = teacher
    model, images = student(path).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad(), model.backbone.as_static():
        torch.testing.assert_close(model(images), net(images))
    assert not any(m.loaded for m in model.backbone.maskers())  # so that they start at 5, not 0.1
    own = student(path, init_student=False)
    assert not torch.equal(own.head.fc.weight, net.head.fc.weight)


def test_nothing_of_the_student_touches_the_teacher(teacher):
    _, path = teacher
    model = student(path)
    network = model.teacher.network
    before = copy.deepcopy(network.state_dict())
    model.train()
    losses = model.loss(*batch())
    sum(losses.values()).backward()
    assert not any(m.training for m in network.modules())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    own = {id(p) for p in network.parameters()}
    assert not own & {id(p) for p in model.parameters()}
    assert not any('teacher' in key for key in model.state_dict())
    assert find_backbone(model, 'this test') is model.backbone
    assert copy.deepcopy(model).teacher.network is network  # not doubled by an average


def test_evaluation_needs_no_teacher():
    model = build(config('absent.pth')).eval()
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(RuntimeError, match='the teacher has no weights yet'):
        model.loss(*batch())


@pytest.mark.parametrize('spoil, message', [
    (lambda w: w.pop('head.fc.bias'), '1 missing: head.fc.bias'),
    (lambda w: w.pop('backbone.layer2.1.bn3.running_var'), '1 missing: backbone.layer2.1.bn3.run'),
    (lambda w: w.update({'backbone.layer1.0.masker.layer.conv.bias': torch.zeros(2)}),
     '1 unexpected: backbone.layer1.0.masker'),
    (lambda w: w.update({'head.fc.bias': torch.zeros(7)}), r'1 mismatched: head.fc.bias \(7,\)')])
def test_a_teachers_weights_that_do_not_fit_name_the_keys(teacher, tmp_path, spoil, message):
    weights = dict(teacher[0].state_dict())
    spoil(weights)
    torch.save(weights, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=f"the teacher's checkpoint .*bad.pth.*{message}"):
        student(tmp_path / 'bad.pth')


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match='absent.pth is not a file'):
        student(tmp_path / 'absent.pth')


@pytest.mark.parametrize('teacher', [None, {}, dict(backbone={}), dict(checkpoint='a', depth=5)])
def test_a_teacher_needs_a_checkpoint_and_known_keys(teacher):
    with pytest.raises(ValueError, match='teacher must be a dict with a checkpoint and keys amon'):
        build(config(teacher=teacher))


def test_torchvisions_keys_are_a_teachers_too(teacher, tmp_path):
    net, path = teacher
    plain = {k.removeprefix('backbone.').removeprefix('head.'): v
             for k, v in net.state_dict().items()}
    torch.save(plain, tmp_path / 'plain.pth')
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(student(tmp_path / 'plain.pth').teacher(images), net(images))


def test_a_wider_teacher_teaches_but_gives_no_start(teacher):
    _, path = teacher
    narrow = dict(backbone=dict(config()['backbone'], base_channels=4),
                  head=dict(config()['head'], in_channels=128),
                  teacher=dict(checkpoint=str(path), head=config()['head'],
                               backbone=dict(config()['backbone'], paradigm=None)))
    with pytest.raises(CheckpointError, match='init_student=False'):
        student(path, **narrow)
    losses = student(path, init_student=False, **narrow).loss(*batch())
    assert losses['loss_kd'] > 0


def collate(samples):
    images, labels = zip(*samples)
    return dict(inputs=torch.stack(images), data_samples=list(labels))


def train(work_dir, path, hooks=(), **kwargs):
    data = list(zip(*batch(8)))
    runner = make_runner(work_dir, [ActivationHook(target=0.5), *hooks],
                         model=build(config(path)), default_scope='mmpretrain',
                         train_dataloader=DataLoader(data, batch_size=4, collate_fn=collate),
                         **kwargs)
    runner.train()
    return runner


@pytest.mark.parametrize('average', [False, True])
def test_it_trains_with_a_moving_average_or_without(teacher, tmp_path, average):
    from mmengine.hooks import EMAHook
    runner = train(tmp_path, teacher[1], [EMAHook(momentum=0.1)] * average, epochs=2)
    for name in ('loss', 'loss_kd', 'loss_activation'):
        assert math.isfinite(runner.message_hub.get_scalar(f'train/{name}').current())
    assert torch.equal(runner.model.teacher.network['head'].fc.weight, teacher[0].head.fc.weight)


def test_mixed_precision_changes_the_loss_by_rounding_alone(teacher):
    model, (images, samples) = student(teacher[1]).train(), batch()
    exact = model.loss(images, samples)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = model.loss(images, samples)
    assert mixed['loss_kd'].dtype == torch.float32
    torch.testing.assert_close(mixed['loss_kd'], exact['loss_kd'], rtol=0.2, atol=0.02)
    sum(mixed.values()).backward()
    assert torch.isfinite(model.backbone.conv1.weight.grad).all()


def test_a_resumed_training_has_its_teacher_and_its_own_weights(teacher, tmp_path):
    hooks = dict(checkpoint=dict(type='laud_mm.AtomicCheckpointHook', interval=1))
    first = train(tmp_path, teacher[1], epochs=1, default_hooks=hooks)
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    assert not any('teacher' in key for key in saved)
    runner = train(tmp_path, teacher[1], epochs=2, default_hooks=hooks, resume=True)
    assert runner.iter == 4 and runner.model.teacher.network is not None
    resumed = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['state_dict']
    assert saved.keys() == resumed.keys() == first.model.state_dict().keys()
    assert not torch.equal(resumed['head.fc.weight'], saved['head.fc.weight'])


def test_the_type_is_found_from_mmpretrains_scope_alone():
    cfg = Config(dict(model=config()))
    assert type(build(cfg.model)).__name__ == 'DistillationClassifier'
