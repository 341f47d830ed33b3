"""Accuracy of trained nets in 8-bit integers beside float, and how many decisions flip.

Scales are measured on images of the training set, in the test's pipeline.

    benchmarks/int8_accuracy.py CONFIG CHECKPOINT [CONFIG CHECKPOINT ...] --calib FOLDER --json OUT
"""
import argparse
import copy
from pathlib import Path

import torch
from mmengine.runner import Runner

from laud_mm.commands.deploy import build_backbone
from laud_mm.commands.quantize import backbone_inputs, image_files
from laud_mm.deploy import deploy, measure_scales
from laud_mm.deploy.check import compare
from laud_mm.latency.measure import device_stamp
from laud_mm.utils.files import write_json
from laud_mm.utils.run import load_config
from laud_mm.utils.tables import text_table

METRICS = ('accuracy/top1', 'coco/bbox_mAP')
COLUMNS = ('config', 'metric', 'float', 'int8', 'images', 'decisions', 'decisions_flipped',
           'mean_difference')


def evaluate(cfg, checkpoint, backbone=None):
    """The metric of a config's test, with a backbone put into its model.

    Returns:
        tuple[str, float, list[Path]]: Name and value, and the set's images.
    """
    cfg = copy.deepcopy(cfg)
    for name in ('latency', 'activation'):  # they look for a LAUD backbone
        cfg.default_hooks.pop(name, None)
    cfg.load_from, cfg.resume, cfg.log_level = str(checkpoint), False, 'WARNING'
    cfg.experiment_name = f'int8_{Path(checkpoint).parent.name}_{backbone is not None}'
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    if backbone is not None:
        runner.model.backbone = backbone
    found = runner.test()
    metric = next(name for name in METRICS if name in found)
    data = runner.test_dataloader.dataset
    return metric, float(found[metric]), [Path(data.get_data_info(i)['img_path'])
                                          for i in range(len(data))]


def study(config, checkpoint, calib, images):
    """One net: a row of the table."""
    cfg = load_config(config)
    backbone = build_backbone(cfg, checkpoint)
    scales = measure_scales(backbone, backbone_inputs(cfg, image_files(calib, images)))
    metric, exact, files = evaluate(cfg, checkpoint)
    _, rounded, _ = evaluate(cfg, checkpoint, deploy(backbone, quantized=scales))
    own = compare(backbone, deploy(backbone, quantized=scales, with_decisions=True),
                  backbone_inputs(cfg, files))
    return dict(config=Path(config).stem, metric=metric, float=exact, int8=rounded,
                calibration_images=scales.images, **own)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('nets', nargs='+', help='config and checkpoint of every net')
    parser.add_argument('--calib', required=True, help='folder of training images')
    parser.add_argument('--images', type=int, default=128, help='how many of them are taken')
    parser.add_argument('--json', help='file to write')
    args = parser.parse_args()
    rows = []
    for config, checkpoint in zip(args.nets[::2], args.nets[1::2]):
        with torch.no_grad():
            rows.append(study(config, checkpoint, args.calib, args.images))
        print(text_table(rows, COLUMNS), flush=True)
    if args.json:
        write_json(dict(stamp=device_stamp('cpu'), results=rows), args.json)


if __name__ == '__main__':
    main()
