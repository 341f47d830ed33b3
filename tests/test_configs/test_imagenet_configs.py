"""Every classifier's config: its name, its recipe, one forward, loss and backward."""
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from laud_mm.hooks import ActivationHook
from laud_mm.registry import HOOKS, MODELS
from laud_mm.specs import backbone_spec

from .test_configs import build

pytest.importorskip('mmpretrain')

FOLDER = Path(__file__).resolve().parents[2] / 'configs'
IN1K = sorted(FOLDER.glob('*_in1k.py'))
SMALL = sorted([*FOLDER.glob('*_digits*.py'), *FOLDER.glob('*_fashion*.py')])
# laud_<network>_<what is skipped>[_<granularity>]_t<target>_<data>
NAME = re.compile(r'laud_(?P<network>resnet\d+|regnety_[\d.]+[mg]f|t2t_vit_\d+|convnext_[a-z]+)_'
                  r'(?P<paradigm>layer|channel|spatial|both|token|head|all)'
                  r'(_(?P<unit>[gs])(?P<granularity>\d{4}))?_t(?P<target>\d\d)_in1k')
BATCH = {'resnet101': 512, 't2t_vit_14': 512, 't2t_vit_19': 512, 't2t_vit_24': 512}  # others 1024
parametrize = pytest.mark.parametrize('path', IN1K + SMALL, ids=lambda p: p.stem)


def shrink(cfg):
    """Make a ResNet or a ConvNeXt narrow; the others are small enough."""
    backbone = cfg.model.backbone
    if backbone.type == 'laud_mm.LAUDConvNeXt':
        backbone.arch = dict(depths=(1, 1, 2, 1), channels=(16, 24, 32, 40))
        cfg.model.head.in_channels = 40
    if backbone.type == 'laud_mm.LAUDResNet':
        backbone.base_channels = 8
        cfg.model.head.in_channels = 256
    return cfg


def settings(cfg):
    """A part of a config without the scope that mmengine notes in it."""
    return {k: settings(v) if isinstance(v, dict) else v
            for k, v in cfg.items() if k != '_scope_'}


def with_teacher(model, folder):
    """Initialise a model, its teacher from random weights in a file."""
    if hasattr(model, 'teacher'):
        parts = {name: MODELS.build(dict(part)) for name, part in model.teacher.parts.items()
                 if part}
        model.teacher.checkpoint = str(folder / 'teacher.pth')
        torch.save(torch.nn.ModuleDict(parts).state_dict(), model.teacher.checkpoint)
    model.init_weights()
    return model


@parametrize
def test_one_step_reaches_every_parameter(path, tmp_path):
    cfg = shrink(Config.fromfile(path))
    hooks = [HOOKS.build(dict(h)) for h in cfg.default_hooks.values()
             if h.type.startswith('laud_mm.')]
    size = 64 if 't2t' in path.stem else 32
    cfg.model.data_preprocessor = cfg.data_preprocessor  # as the Runner does
    model = with_teacher(build(cfg), tmp_path).train()
    losses = model(**model.data_preprocessor(raw_batch(2, size, cfg), training=True), mode='loss')
    losses = model.parse_losses(losses)[0]
    for hook in hooks:
        if isinstance(hook, ActivationHook):
            losses = losses + hook.loss(model.backbone.record.cost(), 0.1)[0]
    assert torch.isfinite(losses)
    losses.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def raw_batch(count, size, cfg):
    from mmpretrain.structures import DataSample
    channels = cfg.model.backbone.get('in_channels', 3)
    return dict(inputs=[torch.randint(0, 256, (channels, size, size), dtype=torch.uint8)
                        for _ in range(count)],
                data_samples=[DataSample().set_gt_label(i) for i in range(count)])


@parametrize
def test_a_dumped_config_is_the_same(path, tmp_path):
    cfg = Config.fromfile(path)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize('path', IN1K, ids=lambda p: p.stem)
def test_the_name_says_what_the_config_does(path):
    cfg, name = Config.fromfile(path), NAME.fullmatch(path.stem)
    backbone, network = cfg.model.backbone, name['network']
    own = {'LAUDResNet': lambda: f'resnet{backbone.depth}',
           'LAUDConvNeXt': lambda: f'convnext_{backbone.arch}'}.get(
        backbone.type.removeprefix('laud_mm.'), lambda: backbone.arch)()
    assert own == network
    expected = ('token', 'head', 'layer') if name['paradigm'] == 'all' else name['paradigm']
    assert backbone.paradigm == expected
    activation, target = cfg.default_hooks.activation, int(name['target']) / 10
    targets = activation.loss if 'loss' in activation else activation
    assert {v for k, v in targets.items() if k.endswith('target')} == {target}
    if name['unit']:
        field = {'g': 'channel_granularity', 's': 'spatial_granularity'}[name['unit']]
        value = backbone[field]
        digits = str(value) * 4 if isinstance(value, int) else ''.join(map(str, value))
        assert digits == name['granularity']
        assert expected == {'g': 'channel', 's': 'spatial'}[name['unit']]


@pytest.mark.parametrize('path', [p for p in IN1K + SMALL if 't2t' not in p.stem],
                         ids=lambda p: p.stem)
def test_the_head_reads_what_the_backbone_writes(path):
    model = Config.fromfile(path).model
    assert backbone_spec(model.backbone).blocks[-1].shape.out_channels == model.head.in_channels


@pytest.mark.parametrize('path', IN1K, ids=lambda p: p.stem)
def test_the_recipe_is_the_papers(path):
    cfg, network = Config.fromfile(path), NAME.fullmatch(path.stem)['network']
    batch, optimizer = BATCH.get(network, 1024), cfg.optim_wrapper.optimizer
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == batch
    assert settings(cfg.model.loss_kd) == dict(weight=0.5, temperature=4.0)
    schedule = cfg.param_scheduler
    assert schedule.type == 'CosineAnnealingLR' and schedule.T_max == cfg.train_cfg.max_epochs
    assert [t.type for t in cfg.train_pipeline[1:3]] == ['RandomResizedCrop', 'RandomFlip']
    if network.startswith('t2t'):
        assert optimizer.type == 'AdamW' and cfg.train_cfg.max_epochs == 150
        return
    assert cfg.train_cfg.max_epochs == 100
    if network.startswith('convnext'):
        assert settings(optimizer) == dict(type='AdamW', lr=2e-4, weight_decay=0.05)
    else:
        assert settings(optimizer) == dict(type='SGD', lr=0.01 * batch / 128, momentum=0.9,
                                           nesterov=True, weight_decay=5e-5)
    assert settings(cfg.default_hooks.activation) == dict(
        type='laud_mm.ActivationHook', target=0.5, weight=10.0, bounds=True,
        temperature=dict(type='exponential', start=5.0, end=0.1))
    assert ('Lighting' in [t.type for t in cfg.train_pipeline]) == network.startswith('regnet')
    assert [t.type for t in cfg.train_dataloader.dataset.pipeline] == [
        t.type for t in cfg.train_pipeline]


def test_every_network_has_its_paradigms():
    found = {}
    for path in IN1K:
        name = NAME.fullmatch(path.stem)
        found.setdefault(name['network'], set()).add(
            name['paradigm'] + (name['granularity'] or ''))
    cnn = {'layer', 'channel2222', 'spatial4421'}
    assert found['resnet50'] == cnn | {'channel1111', 'spatial1111'}
    assert found['resnet101'] == {'layer', 'channel2222', 'channel1111', 'spatial8471',
                                  'spatial1111'}
    transformer = {'token', 'head', 'layer', 'all'}
    assert all(found.pop(f'regnety_{size}') == cnn for size in ('400mf', '800mf', '1.6gf', '3.2gf'))
    assert all(found.pop(f't2t_vit_{depth}') == transformer for depth in (14, 19, 24))
    assert all(found.pop(f'convnext_{arch}') == cnn - {'channel2222'}
               for arch in ('tiny', 'small'))
    assert set(found) == {'resnet50', 'resnet101'}


def test_a_target_and_the_learning_rates_of_parts_are_one_line_each(tmp_path):
    base = next(p for p in IN1K if p.stem == 'laud_resnet50_channel_g2222_t05_in1k')
    (tmp_path / 'mine.py').write_text(
        f"_base_ = '{base}'\n"
        "default_hooks = dict(activation=dict(target=0.4))\n"
        "optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(masker=dict(lr_mult=3.0))))\n")
    cfg, old = Config.fromfile(tmp_path / 'mine.py'), Config.fromfile(base)
    assert cfg.default_hooks.activation == dict(old.default_hooks.activation, target=0.4)
    model = build(shrink(cfg))
    names = {id(p): n for n, p in model.named_parameters()}
    lr = cfg.optim_wrapper.optimizer.lr
    for group in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups:
        for parameter in group['params']:
            factor = 3.0 if '.masker.' in names[id(parameter)] else 1.0
            assert group['lr'] == pytest.approx(lr * factor), names[id(parameter)]
