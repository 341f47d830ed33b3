"""tools/visualize.py on an untrained detector and a tiny set."""
import re
import subprocess
import sys

import pytest
import torch

from laud_mm.demo.detection_set import build_detection_set

from ..conftest import ROOT
from ..test_detectors.tiny import build_detector, tiny_config

CONFIG = ROOT / 'configs' / 'faster_rcnn_laud_demo.py'


def run(*args, cwd):
    done = subprocess.run([sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'visualize.py'),
                           *map(str, args)], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_tool_writes_a_report_of_a_detector(tmp_path):
    data = build_detection_set(tmp_path / 'set', num_train=1, num_val=3, image_size=64)
    model = build_detector(tiny_config('faster_rcnn', paradigm='spatial'))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    code, said = run(
        CONFIG, tmp_path / 'model.pth', '--out', tmp_path / 'report', '--pictures', 2,
        '--cfg-options', 'model.backbone.base_channels=8', 'model.backbone.paradigm=spatial',
        'model.neck.in_channels=[32,64,128,256]', 'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False', f'test_dataloader.dataset.data_root={data}/',
        f'test_evaluator.ann_file={data}/annotations/instances_val.json', cwd=tmp_path)
    assert code == 0, said
    assert '3 images, FLOPs fraction' in said
    text = (tmp_path / 'report' / 'index.html').read_text()
    assert len(re.findall('pictures/first_', text)) == 2


def test_missing_files_are_named(tmp_path):
    code, said = run('absent.py', 'absent.pth', cwd=tmp_path)
    assert code == 1 and 'config must be an existing file, got absent.py' in said
    code, said = run(CONFIG, 'absent.pth', '--pictures', 0, cwd=tmp_path)
    assert code == 1 and '--pictures must be at least 1, got 0' in said
