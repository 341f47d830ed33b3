"""tools/train.py on class folders: an ImageNet config on two processes, and the digits study."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from laud_mm.demo.digits_demo import STATIC, DigitsStudy
from laud_mm.models.backbones import LAUDResNet

from .test_train_and_test import command, run

pytest.importorskip('mmpretrain')
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
IN1K = CONFIGS / 'laud_resnet50_layer_t05_in1k.py'


@pytest.fixture(scope='module')
def class_folders(tmp_path_factory):
    """Two classes of four images each for training, two for validation."""
    import cv2
    root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for name in ('cat', 'dog'):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
                cv2.imwrite(str(root / split / name / f'{index}.png'), image)
    return root


def small_config(folder, root):
    """A user's config: the ImageNet one on two classes, narrow, with a moving average."""
    weights = LAUDResNet(50, base_channels=8, paradigm=None).state_dict()
    torch.save({**weights, 'fc.weight': torch.rand(2, 256), 'fc.bias': torch.rand(2)},
               folder / 'teacher.pth')
    data = (f"data_root='{root}', metainfo=dict(classes=('cat', 'dog'))")
    loader = f'dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict({data}))'
    (folder / 'mine.py').write_text(
        f"_base_ = '{IN1K}'\n"
        "model = dict(backbone=dict(base_channels=8), head=dict(num_classes=2, in_channels=256,\n"
        f"    topk=(1, )), teacher=dict(checkpoint='{folder}/teacher.pth'))\n"
        "data_preprocessor = dict(num_classes=2)\n"
        f"train_dataloader = val_dataloader = test_dataloader = {loader}\n"
        "val_evaluator = dict(topk=(1, ))\n"
        "train_cfg = dict(max_epochs=1)\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.1, priority='ABOVE_NORMAL')]\n"
        "default_hooks = dict(logger=dict(interval=1))\n")
    return folder / 'mine.py'


def test_an_imagenet_config_trains_on_class_folders_with_two_processes(class_folders, tmp_path):
    config = small_config(tmp_path, class_folders)
    code, output = run('bash', str(ROOT / 'tools' / 'dist_train.sh'), str(config), '2',
                       '--work-dir', str(tmp_path / 'out'))
    assert code == 0, output[-3000:]
    for name in ('loss_kd', 'loss_activation', 'accuracy/top1', 'backbone_flops_fraction'):
        assert name in output
    saved = torch.load(tmp_path / 'out' / 'epoch_1.pth', weights_only=False)
    assert 'ema_state_dict' in saved and not any('teacher' in k for k in saved['state_dict'])


def test_missing_data_and_teachers_are_explained_before_anything_starts(class_folders, tmp_path):
    code, output = run(*command('train.py', IN1K, '--work-dir', tmp_path / 'out'), cwd=tmp_path)
    assert code == 1 and 'Traceback' not in output
    assert '- train_dataloader: data/imagenet' in output
    config = small_config(tmp_path, class_folders)
    (tmp_path / 'teacher.pth').unlink()
    code, output = run(*command('train.py', config, '--work-dir', tmp_path / 'out'))
    assert code == 1 and "the teacher's checkpoint must be an existing file" in output
    assert not (tmp_path / 'out').exists()


TINY = {'model.backbone.base_channels': 8, 'model.head.in_channels': 256,
        'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 3, 'param_scheduler.T_max': 3}
STUDY = """
import sys
from pathlib import Path
from laud_mm.demo.digits import build_digits
from laud_mm.demo.digits_demo import STATIC, DigitsStudy
build_digits(sys.argv[4])
study = DigitsStudy(*map(Path, sys.argv[1:4]), sys.argv[4], eval(sys.argv[5]))
study.train([STATIC], 1, 1)
"""


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(tmp_path):
    data = tmp_path / 'digits'
    study = DigitsStudy(CONFIGS, ROOT / 'tools' / 'train.py', tmp_path / 'work', str(data), TINY)
    killed = subprocess.Popen([sys.executable, '-c', STUDY, CONFIGS, study.train_tool,
                               study.work_dir, data, repr(TINY)], stdout=subprocess.DEVNULL)
    folder, deadline = study.work_dir / STATIC.name, time.monotonic() + 200
    while not (folder / 'epoch_1.pth').is_file():
        assert killed.poll() is None and time.monotonic() < deadline, 'the training ended early'
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(1)
    written = sorted(p.stat().st_mtime_ns for p in folder.glob('*.pth'))
    time.sleep(3)  # the training died with the study: nothing is written any more
    assert written == sorted(p.stat().st_mtime_ns for p in folder.glob('*.pth'))
    assert not study.final(STATIC).is_file()

    study.train([STATIC], 1, 1)
    assert 'resumed epoch: ' in (folder / 'train.log').read_text()
    row = study.evaluate(STATIC)
    assert row['accuracy'] == row['masked_accuracy'] and row['backbone_flops_fraction'] == 1
    before = (folder / 'evaluation.json').stat().st_mtime_ns
    study.train([STATIC], 1, 1)  # nothing left to train
    assert study.evaluate(STATIC) == row
    assert (folder / 'evaluation.json').stat().st_mtime_ns == before


def test_the_study_covers_every_paradigm_target_and_one_run_without_teacher():
    from laud_mm.demo.digits_demo import TARGETS, student_runs
    study = DigitsStudy(CONFIGS, None, Path('w'), 'data/digits', {})
    seen = set()
    for student in student_runs():
        cfg = study.config(student)
        assert cfg.model.backbone.paradigm == student.paradigm
        assert cfg.default_hooks.activation.target == student.target
        assert cfg.model.teacher.checkpoint == str(study.final(STATIC))
        seen.add((student.paradigm, student.target, cfg.model.loss_kd.weight))
    assert seen == {(p, t, 0.5) for p in ('layer', 'channel', 'spatial') for t in TARGETS} | {
        ('layer', 0.6, 0.0)}
