"""The benchmark of specialised detectors: the same mAP, and both times."""
import json
import re
import subprocess
import sys

import pytest
import torch

from laud_mm.demo.detection_set import build_detection_set

from ..conftest import ROOT
from ..test_detectors.tiny import build_detector, tiny_config


@pytest.mark.slow
def test_a_specialised_detector_finds_what_the_whole_one_finds(tmp_path):
    root = build_detection_set(tmp_path / 'tiny', num_train=4, num_val=3, image_size=64)
    cfg = tiny_config('faster_rcnn', root, tmp_path / 'unused')
    cfg.dump(tmp_path / 'net.py')
    model = build_detector(cfg)
    blocks = model.backbone.blocks()
    for block, bias in zip(blocks, (5.0, -5.0)):  # the others decide
        torch.nn.init.zeros_(block.masker.layer.conv.weight)
        block.masker.layer.conv.bias.data[0] = bias
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    program = [sys.executable, '-W', 'ignore', ROOT / 'benchmarks' / 'specialised.py',
               tmp_path / 'net.py', tmp_path / 'model.pth', '--images', '2', '--repeats', '1',
               '--no-compile', '--json', tmp_path / 's.json']
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / 's.json').read_text())
    assert content['metrics']['skipping'] == content['metrics']['specialised'] == content[
        'metrics']['deployed']
    rows = {row['backbone']: row for row in content['results']}
    assert rows['deployed']['blocks'] == f'{len(blocks)} skip, 0 static, 0 vanished'
    _, static, vanished = map(int, re.findall(r'\d+', rows['specialised']['blocks']))
    assert static >= 1 and vanished >= 1
    assert all(row['eager_ms'] > 0 and row['ratio_to_static'] > 0 for row in rows.values())

    (tmp_path / 'bad.json').write_text('[]')
    failed = subprocess.run([*program, '--profile', tmp_path / 'bad.json'], capture_output=True,
                            text=True)
    assert failed.returncode == 1 and 'error: profile must be a file' in failed.stderr
