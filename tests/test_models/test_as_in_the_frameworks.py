"""What users of the frameworks' backbones expect of ours: types, freezing, learning rates."""
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from laud_mm.evaluation import configured_target
from laud_mm.models import backbones
from laud_mm.models.backbones import LAUDConvNeXt, LAUDRegNet, LAUDResNet, LAUDT2TViT
from laud_mm.registry import HOOKS, MODELS
from laud_mm.specs import FAMILIES, backbone_spec, family_of, find_backbone_config

from ..conftest import ROOT, TINY_CONVNEXT, TINY_REGNET, TINY_T2T

SMALL = {LAUDResNet: dict(depth=50, base_channels=8), LAUDRegNet: dict(arch=TINY_REGNET),
         LAUDConvNeXt: dict(arch=TINY_CONVNEXT),
         LAUDT2TViT: dict(arch=TINY_T2T, img_size=64, token_dim=16)}
BACKBONES = pytest.mark.parametrize('cls', SMALL, ids=lambda cls: cls.__name__)


def test_every_family_of_the_project_is_here():
    assert {name for name in FAMILIES if name in backbones.__all__} == {
        cls.__name__ for cls in SMALL}


@BACKBONES
def test_types_may_be_classes(cls):
    config = dict(type=cls, **SMALL[cls])
    assert type(MODELS.build(dict(config))) is cls
    assert family_of(config).backbone == cls.__name__
    assert backbone_spec(config, (64, 64)).static_flops > 0
    place, found = find_backbone_config(dict(type='SemiBaseDetector', detector=dict(
        type='FasterRCNN', backbone=config)))
    assert place == 'model.detector.backbone' and found is config
    place, found = find_backbone_config(dict(
        type='Classifier', backbone=config, teacher=dict(backbone=dict(config, paradigm=None))))
    assert place == 'model.backbone' and found is config


@pytest.mark.parametrize('norm', ['BN', 'BN2d', 'SyncBN', nn.BatchNorm2d, nn.SyncBatchNorm,
                                  'torch.nn.BatchNorm2d'], ids=str)
@pytest.mark.parametrize('conv', [None, 'Conv2d', nn.Conv2d], ids=str)
@pytest.mark.parametrize('cls', [LAUDResNet, LAUDRegNet])
def test_norms_and_convolutions_may_be_classes(cls, norm, conv):
    if isinstance(norm, str) and '.' in norm:
        pytest.skip('mmcv knows no types by their path')
    net = cls(**SMALL[cls], norm_cfg=dict(type=norm), conv_cfg=conv and dict(type=conv)).eval()
    with torch.no_grad():
        assert len(net(torch.rand(1, 3, 64, 64))) == 4


def test_the_pure_python_config_of_the_documentation_builds(tmp_path):
    pytest.importorskip('mmdet')
    page = (ROOT / 'docs' / 'configs.md').read_text()
    example = page[page.index('from mmengine.config import read_base'):]
    (tmp_path / 'mine.py').write_text(example[:example.index('```')])
    (tmp_path / 'my_detector.py').write_text("""
from mmdet.models import FPN, DetDataPreprocessor, ResNet, RetinaHead, RetinaNet
from torch.nn import BatchNorm2d
model = dict(
    type=RetinaNet, data_preprocessor=dict(type=DetDataPreprocessor),
    backbone=dict(type=ResNet, depth=50, base_channels=8, norm_cfg=dict(type=BatchNorm2d)),
    neck=dict(type=FPN, in_channels=[32, 64, 128, 256], out_channels=16, num_outs=5),
    bbox_head=dict(type=RetinaHead, num_classes=3, in_channels=16))
default_hooks = dict()
""")
    cfg = Config.fromfile(tmp_path / 'mine.py')
    place, backbone = find_backbone_config(cfg.model)
    net = MODELS.build(backbone)
    assert place == 'model.backbone' and family_of(backbone).backbone == 'LAUDResNet'
    assert type(net) is LAUDResNet and net.blocks()[0].shape.paradigm == 'spatial'
    assert configured_target(cfg) == 0.5
    for name in ('activation', 'latency', 'checkpoint'):
        HOOKS.build(cfg.default_hooks[name])


@BACKBONES
@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_train_leaves_maskers_frozen_that_the_user_froze(cls, frozen_stages):
    net = cls(**SMALL[cls], frozen_stages=frozen_stages)
    for masker in net.maskers():
        masker.requires_grad_(False)
    for mode in (True, False, True):
        net.train(mode)
        assert not any(p.requires_grad for m in net.maskers() for p in m.parameters())


@BACKBONES
def test_maskers_thaw_with_their_stages(cls):
    net = cls(**SMALL[cls], frozen_stages=2)  # the first block of a T2T-ViT decides nothing
    net.freeze_maskers = True
    net.train()
    inside = list(net.maskers()[0].parameters())
    assert not any(p.requires_grad for p in inside)
    net.freeze_maskers = False
    net.train()
    assert all(p.requires_grad for p in inside)


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_layer_depths_are_mmpretrains(depth):
    resnet = pytest.importorskip('mmpretrain.models.backbones').ResNet
    theirs = resnet(depth, base_channels=8)
    ours = LAUDResNet(depth, base_channels=8, paradigm='channel')
    for name, _ in ours.named_parameters():
        plain = f'{name.split(".masker.")[0]}.conv1.weight' if '.masker.' in name else name
        assert ours.get_layer_depth(f'backbone.{name}', 'backbone.') == theirs.get_layer_depth(
            f'backbone.{plain}', 'backbone.'), name
        assert ours.get_layer_depth(name) == ours.get_layer_depth(f'net.{name}', 'net.')
    assert ours.get_layer_depth('head.fc.weight', 'backbone.') == theirs.get_layer_depth(
        'head.fc.weight', 'backbone.')


@BACKBONES
def test_learning_rates_decay_layer_by_layer(cls):
    pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(
        type='mmpretrain.ImageClassifier', backbone=dict(type=cls, **SMALL[cls]),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=8)))
    wrapper = build_optim_wrapper(model, dict(
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        paramwise_cfg=dict(layer_decay_rate=0.5)))
    rates = {id(p): group['lr'] for group in wrapper.param_groups for p in group['params']}
    blocks = [max(rates[id(p)] for p in block.parameters()) for block in model.backbone.blocks()]
    assert blocks == sorted(blocks) and blocks[0] < blocks[-1]
    assert rates[id(model.head.fc.weight)] == 1.0
    for block, rate in zip(model.backbone.blocks(), blocks):
        assert {rates[id(p)] for p in block.parameters()} == {rate}
