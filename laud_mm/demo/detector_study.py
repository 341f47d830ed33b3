"""The five detectors on the demo set: trained, evaluated both ways, and checked."""
import json
from pathlib import Path

from mmengine.device import get_device

from laud_mm.latency.measure import device_stamp
from laud_mm.utils.files import write_json
from laud_mm.utils.tables import text_table

from .detection_demo import run_demo

DETECTORS = ('faster_rcnn', 'retinanet', 'mask_rcnn', 'ddq_detr', 'mask2former')
COLUMNS = ('detector', 'loss_first', 'loss_last', 'bbox_map', 'segm_map', 'masked_map_difference',
           'gflops', 'static_gflops', 'fraction', 'rate', 'ms', 'static_ms', 'ratio')
MAP_TOLERANCE = 0.001


def run_study(config_dir, train_tool, work_dir, detectors=DETECTORS):
    """Train (or go on training) each detector's demo config and evaluate both executors.

    Args:
        config_dir (str | Path): Where `<detector>_laud_demo.py` are.
        train_tool (str | Path): `tools/train.py`.
        work_dir (str | Path): Gets a folder per detector, `table.txt` and `study.json`.
        detectors (Sequence[str]): Which.

    Returns:
        tuple[str, list[str]]: The table, and what did not come out as it must.
    """
    rows, problems = [], []
    for detector in detectors:
        folder = Path(work_dir, detector)
        run_demo(Path(config_dir, f'{detector}_laud_demo.py'), train_tool, folder, num_pictures=2)
        row = make_row(detector, json.loads((folder / 'demo.json').read_text()),
                       read_losses(folder))
        rows.append(row)
        problems += find_problems(row)
        print(text_table(rows, COLUMNS), flush=True)
    write_json(dict(stamp=device_stamp(get_device()), rows=rows, problems=problems),
               Path(work_dir, 'study.json'))
    table = text_table(rows, COLUMNS)
    Path(work_dir, 'table.txt').write_text(table + '\n')
    return table, problems


def read_losses(folder):
    """The training losses that were logged, in order, over all runs in a work folder."""
    losses = {}
    for path in sorted(Path(folder).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                losses[entry.get('iter', entry['step'])] = entry['loss']
    return [loss for _, loss in sorted(losses.items())]


def make_row(detector, demo, losses):
    """One detector's figures.

    Args:
        detector (str): Its name.
        demo (dict): `demo.json` of `run_demo`.
        losses (Sequence[float]): From `read_losses`.

    Returns:
        dict: One value per column; None for masks where there are none.
    """
    skipping, masked = demo['skipping'], demo['masked']
    maps = [k for k in skipping if k in ('coco/bbox_mAP', 'coco/segm_mAP')]
    return dict(
        detector=detector, loss_first=losses[0], loss_last=losses[-1],
        bbox_map=skipping['coco/bbox_mAP'], segm_map=skipping.get('coco/segm_mAP'),
        masked_map_difference=max(abs(skipping[k] - masked[k]) for k in maps),
        gflops=skipping['backbone_flops_g'], static_gflops=skipping['backbone_flops_static_g'],
        fraction=skipping['backbone_flops_fraction'], rate=skipping['backbone_rate'],
        ms=skipping['backbone_latency_measured_ms'],
        static_ms=skipping['backbone_latency_static_ms'],
        ratio=skipping['backbone_latency_ratio'])


def find_problems(row):
    """What of a row is not as it must be."""
    problems = []
    if row['loss_last'] > row['loss_first'] / 2:
        problems.append(f'{row["detector"]}: the loss fell from {row["loss_first"]:.3g} only to '
                        f'{row["loss_last"]:.3g}')
    if row['masked_map_difference'] > MAP_TOLERANCE:
        problems.append(f'{row["detector"]}: masked and skipping evaluation differ by '
                        f'{row["masked_map_difference"]:.4f} mAP')
    return problems
