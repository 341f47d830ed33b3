"""The study of the detectors: from an empty folder to a table, and what it calls a problem."""
import functools
import json
from pathlib import Path

import pytest

from laud_mm.demo import detection_demo
from laud_mm.demo.detection_set import build_detection_set
from laud_mm.demo.detector_study import find_problems, run_study

from ..test_detectors.tiny import tiny_config

TRAIN_TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'train.py'


@pytest.mark.slow
def test_a_study_needs_no_data_beforehand_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detection_demo, 'build_detection_set', functools.partial(
        build_detection_set, num_train=4, num_val=2, image_size=64))
    cfg = tiny_config('mask_rcnn', 'data/tiny', tmp_path / 'unused')
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.default_hooks.logger.interval = 1
    cfg.dump('mask_rcnn_laud_demo.py')
    run = functools.partial(run_study, tmp_path, TRAIN_TOOL, 'out', ['mask_rcnn'])

    table, _ = run()
    assert (tmp_path / 'data' / 'tiny' / 'annotations' / 'instances_val.json').is_file()
    study = json.loads(Path('out', 'study.json').read_text())
    assert study['stamp'].keys() >= {'device', 'threads', 'torch'}
    row, = study['rows']
    assert 0 < row['loss_last'] < row['loss_first']
    assert row['masked_map_difference'] == 0 and row['segm_map'] >= 0
    assert 0 < row['gflops'] < 1.01 * row['static_gflops'] and row['static_ms'] > 0
    assert Path('out', 'table.txt').read_text() == table + '\n'
    assert len(list(Path('out', 'mask_rcnn', 'pictures').glob('*.png'))) == 2

    checkpoint = Path('out', 'mask_rcnn', 'epoch_2.pth')
    written = checkpoint.stat().st_mtime_ns
    run()  # nothing is left to train
    assert checkpoint.stat().st_mtime_ns == written
    again, = json.loads(Path('out', 'study.json').read_text())['rows']
    assert again['loss_last'] == row['loss_last'] and again['bbox_map'] == row['bbox_map']


@pytest.mark.parametrize('change, problem', [
    (dict(), None),
    (dict(loss_last=2.6), 'retinanet: the loss fell from 5 only to 2.6'),
    (dict(masked_map_difference=0.0011), 'masked and skipping evaluation differ by 0.0011 mAP')])
def test_a_loss_that_does_not_halve_and_executions_that_differ_are_problems(change, problem):
    row = dict(detector='retinanet', loss_first=5.0, loss_last=2.5, masked_map_difference=0.001)
    problems = find_problems(dict(row, **change))
    assert len(problems) == bool(problem) and all(problem in p for p in problems)
