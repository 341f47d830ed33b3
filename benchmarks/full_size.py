"""Run each detector at full size once: a training step and an inference, with time and memory.

    benchmarks/full_size.py [--detector mask2former ...] [--json OUT]

Each runs in a process of its own, on the CPU, with random weights and one
synthetic image: the step on the detector's training size, the inference at
800x1216. Peak memory is the process's largest resident size.
"""
import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DETECTORS = ('faster_rcnn', 'retinanet', 'mask_rcnn', 'ddq_detr', 'mask2former')
COLUMNS = ('config', 'train_size', 'train_step_s', 'train_peak_gib', 'inference_s', 'peak_gib',
           'flops_g', 'flops_static_g')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--detector', nargs='+', default=DETECTORS, choices=DETECTORS)
    parser.add_argument('--backbone', default='r50')
    parser.add_argument('--size', nargs=2, type=int, default=(800, 1216), metavar=('H', 'W'))
    parser.add_argument('--json', help='write the results to this file')
    parser.add_argument('--one', help=argparse.SUPPRESS)  # the process that measures a config
    return parser.parse_args()


def make_batch(height, width, objects=4):
    """An image with boxes and masks, as a data loader yields it."""
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    boxes = torch.tensor([[40.0 * i, 30.0 * i, 40.0 * i + 200, 30.0 * i + 150]
                          for i in range(1, objects + 1)])
    masks = np.zeros((objects, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=(height, width), ori_shape=(height, width),
                      scale_factor=(1.0, 1.0)),
        gt_instances=InstanceData(bboxes=boxes, labels=torch.arange(objects),
                                  masks=BitmapMasks(masks, height, width)))
    return dict(inputs=[torch.randint(0, 256, (3, height, width), dtype=torch.uint8)],
                data_samples=[sample])


def peak_gib():
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_config(name, size):
    """One training step and one inference of a config, as a row."""
    import torch
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS

    from laud_mm.hooks import ActivationHook
    register_all_modules()
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    hook = ActivationHook(**{k: v for k, v in cfg.default_hooks.activation.items()
                             if k != 'type'})
    hook.attach(model)
    train_size = (1024, 1024) if 'batch_augments' in cfg.model.data_preprocessor else tuple(size)
    batch = make_batch(*train_size)
    begin = time.perf_counter()
    model.train_step(batch, build_optim_wrapper(model, cfg.optim_wrapper))
    row = dict(config=name, train_size='x'.join(map(str, train_size)),
               train_step_s=time.perf_counter() - begin, train_peak_gib=peak_gib())
    model.eval()
    batch = make_batch(*size)
    with torch.no_grad():
        begin = time.perf_counter()
        model.test_step(batch)
    cost = model.backbone.record.cost()
    return dict(row, inference_s=time.perf_counter() - begin, peak_gib=peak_gib(),
                flops_g=cost.flops.item() / 1e9, flops_static_g=cost.static_flops / 1e9)


def main():
    args = parse_args()
    if args.one:
        print('RESULT' + json.dumps(measure_config(args.one, args.size)))
        return
    from laud_mm.latency.measure import device_stamp
    from laud_mm.utils.files import write_json
    from laud_mm.utils.tables import text_table
    rows = []
    for detector in args.detector:
        done = subprocess.run(
            [sys.executable, __file__, '--one', f'{detector}_laud_{args.backbone}',
             '--size', *map(str, args.size)], stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.split('RESULT')[1]))
        print(text_table(rows[-1:], COLUMNS), flush=True)
    if args.json:
        write_json(dict(stamp=device_stamp('cpu'), results=rows), args.json)


if __name__ == '__main__':
    main()
