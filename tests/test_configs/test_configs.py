"""Every config loads, dumps, builds, and gives the backbone its learning rate."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

CONFIGS = sorted((Path(__file__).resolve().parents[2] / 'configs').glob('*.py'))
DETECTORS = [p for p in CONFIGS if p.stem.startswith('faster_rcnn')]


def build(cfg):
    from mmengine.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no weights to download here
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_survives_dump_and_reload(path, tmp_path):
    cfg = Config.fromfile(path)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py')._cfg_dict.to_dict() == cfg._cfg_dict.to_dict()


@pytest.mark.parametrize('path', DETECTORS, ids=lambda p: p.stem)
def test_backbone_learns_at_base_lr_times_multiplier(path):
    cfg = Config.fromfile(path)
    model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    multiplier = cfg.optim_wrapper.paramwise_cfg.custom_keys['backbone']['lr_mult']
    base = cfg.optim_wrapper.optimizer.lr
    names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    seen = []
    for group in optimizer.param_groups:
        for parameter in filter(lambda p: p.requires_grad, group['params']):
            seen.append(names[id(parameter)])
            expected = base * multiplier if seen[-1].startswith('backbone.') else base
            assert group['lr'] == pytest.approx(expected), seen[-1]
    assert sorted(seen) == sorted(names.values())
    assert any('layer1.0.masker' in name for name in seen)


def test_faster_rcnn_config_is_the_papers():
    cfg = Config.fromfile(next(p for p in CONFIGS if p.stem == 'faster_rcnn_laud_r50'))
    assert cfg.train_cfg.max_epochs == 12 and cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.backbone.paradigm == 'layer' and cfg.model.backbone.depth == 50
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult == 0.5
    activation = cfg.custom_hooks[0]
    assert (activation.target, activation.weight, activation.bounds) == (0.5, 10.0, False)
    assert activation.temperature.end == 0.1
    resize = next(t for t in cfg.train_pipeline if t.type == 'Resize')
    assert tuple(resize.scale) == (1333, 800)


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
