"""Every config loads, dumps, builds, says what its name says, and gives the backbone its rate."""
import copy
import functools
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

# The papers' learning rate of the backbone, as a share of the framework's.
MULTIPLIERS = dict(faster_rcnn=0.5, retinanet=0.2, mask_rcnn=0.5, ddq_detr=0.1, mask2former=0.1)
CONFIGS = sorted(path for detector in MULTIPLIERS for path in (
    Path(__file__).resolve().parents[2] / 'configs').glob(f'{detector}_*.py'))
# <detector>_laud_<backbone>[_<paradigm>[_<s or g of each stage>]_t<tenths>]
NAME = re.compile(r'(?P<detector>\w+)_laud_(?P<backbone>r50|r101|y400mf|y800mf|convnext_t)'
                  r'(_(?P<paradigm>layer|spatial_s|channel_g)(?P<granularity>\d{4})?'
                  r'_t0(?P<target>\d))?')
NAMED = {path: NAME.fullmatch(path.stem) for path in CONFIGS if 'laud_demo' not in path.stem}
each_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
each_named = pytest.mark.parametrize('path', NAMED, ids=lambda p: p.stem)


load = functools.lru_cache(None)(Config.fromfile)


def detector_of(path):
    return path.stem.split('_laud_')[0]


def build(cfg):
    from mmdet.utils import register_all_modules
    from mmengine.registry import MODELS
    register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    model = copy.deepcopy(cfg.model)
    model.backbone.init_cfg = None  # no weights to download here
    return MODELS.build(model)


def test_five_detectors_have_two_resnets_in_every_paradigm():
    for detector in MULTIPLIERS:
        for backbone, spatial in (('r50', 's4421'), ('r101', 's8471')):
            for variant in ('', f'_spatial_{spatial}_t06', '_channel_g2222_t08'):
                name = f'{detector}_laud_{backbone}{variant}'
                assert any(path.stem == name for path in CONFIGS), name


@each_named
def test_a_name_says_what_the_config_holds(path):
    name, cfg = NAMED[path], load(path)
    assert name, f'{path.stem} is not named by the rule in model_zoo.md'
    backbone, activation = cfg.model.backbone, cfg.default_hooks.activation
    arch = {'r50': 50, 'r101': 101, 'y400mf': 'regnety_400mf', 'y800mf': 'regnety_800mf',
            'convnext_t': 'tiny'}
    assert backbone.get('depth', backbone.get('arch')) == arch[name['backbone']]
    paradigm = (name['paradigm'] or 'layer').split('_')[0]
    assert backbone.paradigm == paradigm
    assert activation.target == float(f'0.{name["target"] or 5}')
    if name['granularity']:
        assert list(backbone[f'{paradigm}_granularity']) == [int(n) for n in name['granularity']]
    pretrained = backbone.init_cfg.checkpoint
    assert pretrained == 'torchvision://' + {
        'r50': 'resnet50', 'r101': 'resnet101', 'y400mf': 'regnet_y_400mf',
        'y800mf': 'regnet_y_800mf', 'convnext_t': 'convnext_tiny'}[name['backbone']]


@each_named
def test_settings_are_the_papers(path):
    cfg = load(path)
    activation = cfg.default_hooks.activation
    assert activation.type == 'laud_mm.ActivationHook'
    assert activation.get('weight', 10.0) == 10.0 and not activation.get('bounds', False)
    assert cfg.auto_scale_lr.base_batch_size == 16
    if detector_of(path) == 'mask2former':  # 50 epochs of 118,000 images, 16 a batch
        assert cfg.train_cfg.type == 'IterBasedTrainLoop' and cfg.train_cfg.max_iters == 368750
        assert tuple(next(t for t in cfg.train_pipeline if t.type == 'RandomResize').scale) == (
            1024, 1024)
    else:
        assert cfg.train_cfg.max_epochs == 12
    assert tuple(next(t for t in cfg.test_pipeline if t.type == 'Resize').scale) == (1333, 800)


@pytest.mark.parametrize('path', [p for p in CONFIGS if '_t0' not in p.stem],
                         ids=lambda p: p.stem)
def test_config_survives_dump_and_reload(path, tmp_path):
    cfg = load(path)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py')._cfg_dict.to_dict() == cfg._cfg_dict.to_dict()


@each_config
def test_every_parameter_learns_once_and_the_backbone_at_its_own_rate(path):
    cfg = load(path)
    with torch.device('meta'):  # no memory, no initialisation
        model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    base = cfg.optim_wrapper.optimizer
    multiplier = 1.0 if path.stem.endswith('_demo') else MULTIPLIERS[detector_of(path)]
    names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    seen = []
    for group in optimizer.param_groups:
        for parameter in filter(lambda p: p.requires_grad, group['params']):
            name = names[id(parameter)]
            seen.append(name)
            in_backbone = name.startswith('backbone.')
            assert group['lr'] == pytest.approx(base.lr * (multiplier if in_backbone else 1)), name
            assert group['weight_decay'] == (0 if is_spared(path, model, name)
                                             else base.weight_decay), name
    assert sorted(seen) == sorted(names.values())
    maskers = {n for n, _ in model.backbone.named_parameters() if '.masker.' in n}
    assert maskers and {f'backbone.{n}' for n in maskers} <= set(seen)


def is_spared(path, model, name):
    """Mask2Former's own rules: no weight decay on embeddings and on norms outside the backbone."""
    if detector_of(path) != 'mask2former' or name.startswith('backbone.'):
        return False
    if any(key in name for key in ('query_embed', 'query_feat', 'level_embed')):
        return True
    owner = model.get_submodule(name.rpartition('.')[0])
    return isinstance(owner, (torch.nn.GroupNorm, torch.nn.LayerNorm))


def test_mmpretrain_classifiers_take_the_backbone_and_the_hook(tmp_path):
    pytest.importorskip('mmpretrain')
    from mmengine.registry import MODELS
    from mmpretrain.structures import DataSample
    from mmpretrain.utils import register_all_modules
    from torch.utils.data import DataLoader

    from laud_mm.hooks import ActivationHook

    from ..toy import make_runner
    register_all_modules(init_default_scope=False)
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='laud_mm.LAUDResNet', depth=50, base_channels=8, out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=256,
                  loss=dict(type='CrossEntropyLoss'))))
    data = [dict(inputs=torch.rand(3, 32, 32), data_samples=DataSample().set_gt_label(i % 4))
            for i in range(4)]

    def collate(batch):
        return dict(inputs=torch.stack([b['inputs'] for b in batch]),
                    data_samples=[b['data_samples'] for b in batch])
    runner = make_runner(tmp_path, [ActivationHook(target=0.5)], model=model,
                         train_dataloader=DataLoader(data, batch_size=2, collate_fn=collate),
                         default_scope='mmpretrain')
    runner.train()
    assert runner.message_hub.get_scalar('train/loss_activation').current() > 0
    assert runner.message_hub.get_scalar('train/loss').current() > 0
