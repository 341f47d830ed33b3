"""Detect objects in an image, and show beside them what each stage skipped.

    image_demo.py IMG CONFIG CHECKPOINT [--out FILE] [--score 0.3] [--device cpu]
"""
import argparse
import sys
from pathlib import Path

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

import mmcv
import numpy as np
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import VISUALIZERS

from laud_mm.checkpoints import CheckpointError
from laud_mm.models.find import find_running
from laud_mm.specs import find_backbone_config
from laud_mm.specs.arguments import type_name
from laud_mm.utils.run import load_config
from laud_mm.visualization import save_activation_picture


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
    """Read an image file as (H, W, channels), BGR; one channel is grey."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'image must be an existing file, got {path}')
    flag = {1: 'grayscale', 3: 'color'}.get(channels, 'unchanged')
    image = mmcv.imread(path, flag, channel_order='bgr')
    if image is None:
        raise ValueError(f'{path} is not a readable image')
    image = image if image.ndim == 3 else image[..., None]
    if image.shape[2] != channels:
        raise ValueError(f'image must have {channels} channels, as the backbone reads, got '
                         f'{image.shape[2]} in {path}')
    return image


def detect(image, cfg, checkpoint, device, score):
    """Run a detector on an image.

    Returns:
        tuple[np.ndarray, ActivationRecord, str]: The image (H, W, 3) RGB with what was found
        drawn, what the backbone decided, and what was found, counted.
    """
    # An image has no annotations; mmdet builds their readers, some of which need more packages.
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = [step for step in dataset.pipeline if 'Annotations' not in type_name(step)]
    # Without options mmdet looks for `model.backbone`, which a nested detector has not.
    model = init_detector(cfg, checkpoint, device=device, cfg_options={})
    found = inference_detector(model, image)
    painter = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None, name='image_demo'))
    painter.dataset_meta = model.dataset_meta
    shown = image[..., 2::-1] if image.shape[2] >= 3 else image[..., :1].repeat(3, -1)
    painter.add_datasample('objects', shown, found, draw_gt=False, pred_score_thr=score)
    return painter.get_image(), find_running(model, 'image_demo').record, count(found, score)


def count(found, score):
    """What was found, in words: objects from a score on, panoptic segments, or classes."""
    parts = []
    if 'pred_instances' in found:
        objects = int((found.pred_instances.scores >= score).sum())
        parts.append(f'{objects} objects from score {score} on')
    for field, name in (('pred_panoptic_seg', 'panoptic segments'),
                        ('pred_sem_seg', 'classes of pixels')):
        if field in found:
            segments = found.get(field).sem_seg
            parts.append(f'{len(np.unique(segments.cpu()))} {name}')
    return ', '.join(parts) or 'nothing'


def main():
    args = parse_args()
    out = Path(args.out or Path(args.img).with_suffix('').as_posix() + '_laud.png')
    try:
        cfg = load_config(args.config)
        _, backbone = find_backbone_config(cfg.get('model'))
        image = read_image(args.img, backbone.get('in_channels', 3))
        if not Path(args.checkpoint).is_file():
            raise FileNotFoundError(
                f'checkpoint must be an existing file, got {args.checkpoint}')
        drawn, record, found = detect(image, cfg, args.checkpoint, args.device,
                                      args.score)
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f'error: {error}')
    out.parent.mkdir(parents=True, exist_ok=True)
    save_activation_picture(out, drawn, record)
    cost = record.cost()
    print(f'{found}; backbone computed '
          f'{cost.fraction.item():.3f} of its {cost.static_flops / 1e9:.4g} GFLOPs; '
          f'picture: {out}')


if __name__ == '__main__':
    main()
