"""The demo: a small LAUD detector from data to a table of accuracy and latency."""
import copy
import json
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.runner import Runner

from laud_mm.checkpoints import find_resumable
from laud_mm.evaluation import accuracy_rows, backbone_rows, configured_target, format_rows
from laud_mm.models.find import find_backbone, unwrap
from laud_mm.utils.run import load_config
from laud_mm.visualization import save_detection_picture

from .detection_set import build_detection_set


def run_demo(config, train_tool, work_dir, num_pictures=6):
    """Build the data, train (or go on training), evaluate both executors, write the results.

    Args:
        config (str | Path): The demo's config.
        train_tool (str | Path): `tools/train.py`.
        work_dir (str | Path): Checkpoints, `demo.json`, `table.md` and pictures.
        num_pictures (int): Pictures of detections beside what was skipped.

    Returns:
        str: The table.
    """
    work_dir = Path(work_dir)
    cfg = load_config(str(config), work_dir=str(work_dir))
    build_detection_set(cfg.train_dataloader.dataset.data_root)
    subprocess.run([sys.executable, str(train_tool), str(config), '--work-dir', str(work_dir),
                    '--resume'], check=True)

    cfg.load_from = str(find_resumable(work_dir))
    skipping = evaluate(cfg, 'skipping', num_pictures, work_dir / 'pictures')
    masked = evaluate(cfg, 'masked')
    target = configured_target(cfg)
    table = make_table(skipping, masked, target)
    (work_dir / 'demo.json').write_text(json.dumps(
        dict(target=target, skipping=skipping, masked=masked), indent=2) + '\n')
    (work_dir / 'table.md').write_text(table + '\n')
    return table


def evaluate(cfg, execution, num_pictures=0, picture_dir=None):
    """Test a config's checkpoint in one execution; return its metrics."""
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.execution = execution
    cfg.experiment_name = f'{Path(cfg.work_dir).name}_{execution}'
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    if num_pictures:
        save_pictures(runner, num_pictures, Path(picture_dir))
    return {k: float(v) for k, v in metrics.items()}


def save_pictures(runner, count, folder, min_score=0.5):
    """Draw detections and what was skipped for the first images of the test set."""
    folder.mkdir(parents=True, exist_ok=True)
    model, dataset = unwrap(runner.model), runner.test_dataloader.dataset
    backbone, classes = find_backbone(model, 'the demo'), dataset.metainfo['classes']
    for index in range(min(count, len(dataset))):
        data = dataset[index]
        with torch.no_grad():
            result, = model.test_step(dict(inputs=[data['inputs']],
                                           data_samples=[data['data_samples']]))
        found = result.pred_instances[result.pred_instances.scores > min_score].cpu().numpy()
        image = data['inputs'].permute(1, 2, 0).numpy()[..., ::-1]  # BGR as loaded
        save_detection_picture(folder / f'{index:03d}.png', image, found.bboxes,
                               [classes[i] for i in found.labels], found.scores, backbone.record)


def make_table(skipping, masked, target):
    """One markdown table of the demo's figures."""
    return format_rows([*accuracy_rows(skipping, ', skipping'), *accuracy_rows(masked, ', masked'),
                        *backbone_rows(skipping, target)], 'validation set')
