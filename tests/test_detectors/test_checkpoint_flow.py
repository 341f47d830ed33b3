"""An ImageNet LAUD classifier's checkpoint starts every detector, maskers included."""
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from laud_mm.checkpoints import CheckpointError
from laud_mm.demo.detection_set import build_detection_set

from .test_training import each_detector
from .tiny import CONFIGS, build_detector, tiny_config

pytest.importorskip('mmpretrain')


@pytest.fixture
def checkpoint(tmp_path):
    """Of a classifier with maskers that have learnt something, as its training saves it."""
    from mmpretrain.registry import MODELS
    model = Config.fromfile(CONFIGS / 'laud_resnet50_layer_t05_in1k.py').model
    model.backbone.update(base_channels=8, init_cfg=None)
    model.head.in_channels = 256
    classifier = MODELS.build(model)
    for masker in classifier.backbone.maskers():
        torch.nn.init.normal_(masker.layer.conv.weight)
    torch.save(dict(state_dict=classifier.state_dict(), meta=dict(epoch=100)),
               tmp_path / 'classifier.pth')
    return tmp_path / 'classifier.pth'


def start_from(checkpoint, cfg):
    """As `--cfg-options model.backbone.init_cfg.checkpoint=… …prefix=backbone.` does."""
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint),
                                       prefix='backbone.')
    return cfg


@each_detector
def test_a_detector_starts_with_the_classifiers_backbone(detector, checkpoint):
    backbone = build_detector(start_from(checkpoint, tiny_config(detector))).backbone
    learnt = torch.load(checkpoint, weights_only=True)['state_dict']
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, learnt[f'backbone.{name}']), name
    assert all(masker.loaded for masker in backbone.maskers())


def test_loaded_maskers_keep_the_low_temperature(checkpoint, tmp_path):
    root = build_detection_set(tmp_path / 'set', num_train=2, num_val=1, image_size=64)
    cfg = start_from(checkpoint, tiny_config('retinanet', root, tmp_path / 'out'))
    cfg.train_cfg.update(max_epochs=1, val_interval=2)
    runner = Runner.from_cfg(cfg)
    runner.train()
    temperatures = runner.message_hub.get_scalar('train/gumbel_temperature').data[0]
    assert temperatures.tolist() == [0.1]


@each_detector
def test_a_checkpoint_that_does_not_fit_is_reported_key_by_key(detector, checkpoint):
    cfg = start_from(checkpoint, tiny_config(detector))
    cfg.model.backbone.base_channels = 4
    with pytest.raises(CheckpointError, match=r'layer4.2.conv3.weight: \(256, 64, 1, 1\), '
                                              r'the backbone has \(128, 32, 1, 1\)'):
        build_detector(cfg)
