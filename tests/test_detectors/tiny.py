"""The five detectors at a size for tests: their demo configs, narrower, on a few small images."""
import uuid
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DETECTORS = ('faster_rcnn', 'retinanet', 'mask_rcnn', 'ddq_detr', 'mask2former')
WITH_MASKS = ('mask_rcnn', 'mask2former')
WIDTHS = [32, 64, 128, 256]  # of the backbone's outputs at a base width of 8


def tiny_config(detector, data_root=None, work_dir=None, **backbone):
    """A detector's demo config with a backbone of base width 8, and no other processes."""
    cfg = Config.fromfile(CONFIGS / f'{detector}_laud_demo.py')
    cfg.model.backbone.update(base_channels=8, **backbone)
    if detector == 'mask2former':
        cfg.model.panoptic_head.in_channels = WIDTHS
    else:
        cfg.model.neck.in_channels = [WIDTHS[i] for i in cfg.model.backbone.out_indices]
    if detector == 'retinanet':
        cfg.model.test_cfg.score_thr = 0.0  # its scores start at 0.01
    if data_root is None:
        return cfg
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{data_root}/'
    cfg.train_dataloader.batch_size = 2
    annotations = f'{data_root}/annotations/instances_val.json'
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = annotations
    cfg.update(work_dir=str(work_dir), log_level='ERROR', randomness=dict(seed=0),
               experiment_name=f'{detector}_{uuid.uuid4().hex}')
    return cfg


def build_detector(cfg):
    """Build a config's model, weights initialised, as a Runner would."""
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def batch_of(images, boxes_per_image=1):
    """What a data loader yields for images (3, H, W) uint8, each with boxes that have masks."""
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    samples = []
    for image in images:
        height, width = image.shape[-2:]
        box = torch.tensor([[0.0, 0.0, width / 2, height / 2]]).repeat(boxes_per_image, 1)
        masks = np.zeros((boxes_per_image, height, width), np.uint8)
        masks[:, :-(-height // 2), :-(-width // 2)] = 1
        sample = DetDataSample(metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0),
            batch_input_shape=(height, width)))
        sample.gt_instances = InstanceData(
            bboxes=box, labels=torch.zeros(boxes_per_image, dtype=torch.long),
            masks=BitmapMasks(masks, height, width))
        samples.append(sample)
    return dict(inputs=list(images), data_samples=samples)


def losses_of(model, batch):
    """The model's losses on a batch, by name."""
    data = model.data_preprocessor(batch, training=True)
    return model(**data, mode='loss')


def total_of(losses):
    """The sum that is learnt from."""
    return sum(torch.as_tensor(v).sum() if torch.is_tensor(v) else sum(x.sum() for x in v)
               for k, v in losses.items() if 'loss' in k)
