"""Detect objects or segments in an image, and show beside them what each stage skipped.

    image_demo.py IMG CONFIG CHECKPOINT [--out FILE] [--score 0.3] [--device cpu]
"""
import argparse
import copy
import sys
from pathlib import Path

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

import mmcv
import numpy as np
from mmcv.transforms import Compose
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg

from laud_mm.checkpoints import CheckpointError
from laud_mm.models.find import find_backbones
from laud_mm.specs import find_backbone_config
from laud_mm.specs.arguments import type_name
from laud_mm.utils.run import load_config
from laud_mm.visualization import paint_segments, save_activation_picture, to_rgb

IGNORED = 255  # what mmseg's and mmdet's maps hold where there is no class


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('img', help='image file')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='picture to write; default: IMG with _laud.png at its end')
    parser.add_argument('--score', type=float, default=0.3, help='draw objects from this score on')
    parser.add_argument('--device', default='cpu', help='such as cpu or cuda:0')
    return parser.parse_args()


def read_image(path, channels=3):
    """Read an image file as a backbone takes it.

    Args:
        path (str): Image file.
        channels (int): 3: (H, W, 3), BGR. 1: (H, W), grey. Others: as the file has them.

    Returns:
        np.ndarray: uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, or has not that many channels.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'image must be an existing file, got {path}')
    image = mmcv.imread(path, {1: 'grayscale', 3: 'color'}.get(channels, 'unchanged'))
    if image is None:
        raise ValueError(f'{path} is not a readable image')
    found = image.shape[2] if image.ndim == 3 else 1
    if found != channels:
        raise ValueError(f'image must have {channels} channels, as in_channels of the backbone '
                         f'says, got {found} in {path}')
    return image


def make_pipeline(cfg):
    """A config's test pipeline for an image that is read already and has no annotations."""
    first, *steps = copy.deepcopy(get_test_pipeline_cfg(cfg))
    # Annotations are of the set.
    steps = [step for step in steps if not type_name(step).startswith('Load')]
    return Compose([dict(first, type='mmdet.LoadImageFromNDArray'), *steps])


def detect(image, cfg, checkpoint, device, score):
    """Run a detector or a segmentor on an image.

    Returns:
        tuple[np.ndarray, ActivationRecord, str]: The image (H, W, 3) RGB with what was found
        drawn, what the backbone decided, and what was found in words.
    """
    # Without options mmdet looks for `model.backbone`, which a nested detector has not.
    model = init_detector(cfg, checkpoint, device=device, cfg_options={})
    found = inference_detector(model, image, make_pipeline(cfg)).cpu()
    drawn, said = draw_segments(to_rgb(image), found, model)
    if 'pred_instances' in found:
        objects = DetDataSample(pred_instances=found.pred_instances)
        settings = cfg.get('visualizer') if cfg.get('default_scope') == 'mmdet' else None
        painter = VISUALIZERS.build(dict(settings or dict(type='mmdet.DetLocalVisualizer'),
                                         vis_backends=None, name='image_demo'))
        painter.dataset_meta = model.dataset_meta
        painter.add_datasample('objects', drawn, objects, draw_gt=False, pred_score_thr=score)
        drawn = painter.get_image()
        count = int((found.pred_instances.scores >= score).sum())
        said = [f'{count} objects from score {score} on', *said]
    ran = [b.record for b in find_backbones(model, 'image_demo').values() if b.record is not None]
    if len(ran) != 1:
        raise ValueError(f'one LAUD backbone must run on an image, found: {len(ran)}')
    return drawn, ran[0], ', '.join(said) or 'neither objects nor segments'


def draw_segments(image, found, model):
    """Tint the segments of a panoptic or semantic result; the image, and their number in words."""
    said = []
    fusion = getattr(model, 'panoptic_fusion_head', None)
    classes = len(model.dataset_meta.get('classes') or ()) or IGNORED
    void = classes if fusion is None else fusion.num_classes
    for field, name, ignored in (('pred_sem_seg', 'classes of pixels', IGNORED),
                                 ('pred_panoptic_seg', 'segments', void)):
        if field in found:
            result = found.get(field)
            ids = result.get('sem_seg', result.get('data')).numpy().squeeze()
            image = paint_segments(image, ids, ignored)
            said.append(f'{len(np.setdiff1d(ids, ignored))} {name}')
    return image, said


def main():
    args = parse_args()
    out = Path(args.out or Path(args.img).with_suffix('').as_posix() + '_laud.png')
    try:
        cfg = load_config(args.config)
        backbone = find_backbone_config(cfg.get('model'))[1]
        image = read_image(args.img, backbone.get('in_channels', 3))
        if not Path(args.checkpoint).is_file():
            raise FileNotFoundError(
                f'checkpoint must be an existing file, got {args.checkpoint}')
        drawn, record, said = detect(image, cfg, args.checkpoint, args.device, args.score)
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f'error: {error}')
    out.parent.mkdir(parents=True, exist_ok=True)
    save_activation_picture(out, drawn, record)
    cost = record.cost()
    print(f'{said}; backbone computed '
          f'{cost.fraction.item():.3f} of its {cost.static_flops / 1e9:.4g} GFLOPs; '
          f'picture: {out}')


if __name__ == '__main__':
    main()
