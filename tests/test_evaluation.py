"""The table and the figures of an evaluation, whatever its metrics are."""
import json
import math

import numpy as np
import pytest
import torch
from mmengine.config import Config

from laud_mm.evaluation import configured_target, write_results
from laud_mm.hooks import ActivationHook
from laud_mm.utils.files import write_json

METRICS = {
    'accuracy/top1': torch.tensor(71.5), 'single-label/f1-score': np.float32(0.25),
    'per_class': [0.5, math.nan], 'confusion': torch.eye(2), 'note': 'two classes',
    'nan': math.nan, 'inf': -math.inf, 'counts': np.arange(3), 'of/classes': {'cat': 0.5, 2: None},
    'flag': True}


def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')


def test_metrics_of_any_kind_are_written(tmp_path):
    table = write_results(METRICS, tmp_path, dict(config='c.py'), 0.5)
    found = json.loads((tmp_path / 'results.json').read_text(), parse_constant=refuse)['metrics']
    assert found['accuracy/top1'] == 71.5 and found['per_class'] == [0.5, None]
    assert found['confusion'] == [[1, 0], [0, 1]] and found['nan'] is found['inf'] is None
    assert found['of/classes'] == {'cat': 0.5, '2': None} and found['counts'] == [0, 1, 2]
    for text in ('accuracy/top1 | 71.5', '0.5, nan', 'two classes', '0, 1, 2'):
        assert text in table


def test_a_detectors_metrics_may_be_nan(tmp_path):
    table = write_results({'coco/bbox_mAP': math.nan, 'coco/bbox_mAP_50': -1}, tmp_path, {})
    assert 'nan / -1.000' in table


def test_a_mean_alone_is_a_row(tmp_path):
    assert '| coco/bbox_mAP | 0.25 |' in write_results({'coco/bbox_mAP': 0.25}, tmp_path, {})


def test_several_backbones_have_rows_of_their_own(tmp_path):
    own = {'backbone_flops_g': 1.0, 'backbone_flops_static_g': 2.0, 'backbone_rate': 0.5,
           'backbone_flops_fraction': 0.5, 'backbone_latency_predicted_ms/TX2': 3.0,
           'backbone_latency_predicted_static_ms/TX2': 4.0,
           'backbone_latency_predicted_ratio/TX2': 0.75}
    metrics = {f'{name}.backbone/{k}': v for name in ('student', 'teacher')
               for k, v in own.items()}
    table = write_results(dict(metrics, accuracy=1.0), tmp_path, {})
    for name in ('student', 'teacher'):
        assert f'dynamic / static ({name}.backbone) | 1 / 2' in table
        assert f'predicted for TX2 ({name}.backbone) | 3 / 4 (0.750)' in table
    assert table.count('accuracy') == 1 and 'backbone_' not in table


@pytest.mark.parametrize('kind', ['ActivationHook', 'laud_mm.ActivationHook', ActivationHook])
def test_the_target_is_found_however_the_hook_is_named(kind):
    hook = dict(type=kind, target=0.7)
    assert configured_target(Config(dict(default_hooks=dict(activation=hook)))) == 0.7
    assert configured_target(Config(dict(custom_hooks=[hook]))) == 0.7
    timed = dict(hook, metric='latency', device='TX2')
    assert configured_target(Config(dict(custom_hooks=[timed]))) is None


def test_a_json_file_that_cannot_be_made_leaves_the_old_one(tmp_path):
    write_json(dict(a=1), tmp_path / 'a.json')

    class Broken(dict):
        def items(self):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_json(Broken(), tmp_path / 'a.json')
    assert json.loads((tmp_path / 'a.json').read_text()) == dict(a=1)
