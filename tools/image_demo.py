"""Detect objects in an image, and show beside them what each stage skipped.

    image_demo.py IMG CONFIG CHECKPOINT [--out FILE] [--score 0.3] [--device cpu]
"""
import argparse
import sys
from pathlib import Path

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

import mmcv
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import VISUALIZERS

from laud_mm.checkpoints import CheckpointError
from laud_mm.models.find import find_backbone
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


def read_image(path):
    """Read an image file as (H, W, 3) uint8, BGR."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'image must be an existing file, got {path}')
    image = mmcv.imread(path, channel_order='bgr')
    if image is None:
        raise ValueError(f'{path} is not a readable image')
    return image


def detect(image, config, checkpoint, device, score):
    """Run a detector on an image.

    Returns:
        tuple[np.ndarray, ActivationRecord, int]: The image (H, W, 3) RGB with
        the objects drawn, what the backbone decided, and the number of objects.
    """
    cfg = load_config(config)
    model = init_detector(cfg, checkpoint, device=device)
    found = inference_detector(model, image)
    painter = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None, name='image_demo'))
    painter.dataset_meta = model.dataset_meta
    painter.add_datasample('objects', image[..., ::-1], found, draw_gt=False, pred_score_thr=score)
    objects = int((found.pred_instances.scores >= score).sum())
    return painter.get_image(), find_backbone(model, 'image_demo').record, objects


def main():
    args = parse_args()
    out = Path(args.out or Path(args.img).with_suffix('').as_posix() + '_laud.png')
    try:
        image = read_image(args.img)
        if not Path(args.checkpoint).is_file():
            raise FileNotFoundError(
                f'checkpoint must be an existing file, got {args.checkpoint}')
        drawn, record, objects = detect(image, args.config, args.checkpoint, args.device,
                                        args.score)
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f'error: {error}')
    out.parent.mkdir(parents=True, exist_ok=True)
    save_activation_picture(out, drawn, record)
    cost = record.cost()
    print(f'{objects} objects from score {args.score} on; backbone computed '
          f'{cost.fraction.item():.3f} of its {cost.static_flops / 1e9:.4g} GFLOPs; '
          f'picture: {out}')


if __name__ == '__main__':
    main()
