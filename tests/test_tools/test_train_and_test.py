"""tools/train.py and tools/test.py on a tiny demo set: train, be killed, resume, evaluate."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from laud_mm.demo.detection_set import build_detection_set

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'faster_rcnn_laud_demo.py'
EPOCHS = 3


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return build_detection_set(tmp_path_factory.mktemp('data') / 'set', num_train=24, num_val=4,
                               image_size=64)


def options(data_root, *more):
    annotations = f'{data_root}/annotations/instances_val.json'
    roots = [f'{loader}_dataloader.dataset.data_root={data_root}/'
             for loader in ('train', 'val', 'test')]
    return ['--cfg-options', *roots, f'val_evaluator.ann_file={annotations}',
            f'test_evaluator.ann_file={annotations}', 'model.backbone.base_channels=8',
            'model.neck.in_channels=[32,64,128,256]', 'train_dataloader.batch_size=2',
            f'train_cfg.max_epochs={EPOCHS}', 'train_cfg.val_interval=3',
            'default_hooks.logger.interval=1', 'randomness.seed=0', *more]


def command(tool, *args):
    return [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)]


def run(*args, **kwargs):
    env = dict(os.environ, PYTHON=sys.executable, **kwargs.pop('env', {}))
    result = subprocess.run(args, capture_output=True, text=True, timeout=400, env=env, **kwargs)
    return result.returncode, result.stdout + result.stderr


def logged(work_dir, key):
    """Training iterations and a value of theirs, over all runs in a work dir."""
    steps = {}
    for path in sorted(work_dir.rglob('scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if key in entry and 'iter' in entry:
                steps[entry['iter']] = entry[key]
    return steps


@pytest.fixture(scope='module')
def trained(data_root, tmp_path_factory):
    """A training that was killed with SIGKILL in its second epoch and then resumed."""
    work_dir = tmp_path_factory.mktemp('train')
    train = command('train.py', CONFIG, '--work-dir', work_dir)
    killed = subprocess.Popen([*train, *options(data_root)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while max(logged(work_dir, 'gumbel_temperature'), default=0) < 15:
        assert killed.poll() is None and time.monotonic() < deadline, 'the training ended early'
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = (work_dir / 'last_checkpoint').read_text()
    # A checkpoint cut by the kill must not be the one resumed from.
    (work_dir / 'epoch_2.pth').write_bytes((work_dir / 'epoch_1.pth').read_bytes()[:-1000])
    code, output = run(*train, '--resume', *options(data_root))
    assert code == 0, output[-3000:]
    return work_dir, before, output


def test_a_killed_training_resumes_from_the_last_checkpoint_with_the_same_schedule(trained):
    work_dir, before, output = trained
    assert before.endswith('epoch_1.pth')
    assert re.search(r'resumed epoch: 1, iter: 12\b', output)
    temperatures = logged(work_dir, 'gumbel_temperature')
    assert sorted(temperatures) == list(range(1, 37))
    for step, value in temperatures.items():
        assert value == pytest.approx(5 * (0.1 / 5)**((step - 1) / 36), rel=1e-5)
    assert (work_dir / f'epoch_{EPOCHS}.pth').is_file()
    assert not list(work_dir.glob('*.part'))


def test_training_logs_metrics_and_the_latency_report(trained):
    work_dir, _, output = trained
    for name in ('coco/bbox_mAP_50', 'backbone_latency_measured_ms', 'backbone_latency_ratio',
                 'backbone_flops_fraction', 'loss_activation', 'activation_rate'):
        assert name in output
    report = json.loads(next(work_dir.rglob('val_iter_36.json')).read_text())
    assert report['images'] == 4 and report['measured']['dynamic']['p90_ms'] > 0


def test_masked_and_skipping_evaluation_agree(trained, data_root, tmp_path):
    work_dir, _, _ = trained
    metrics = {}
    for execution in ('masked', 'skipping'):
        code, output = run(*command('test.py', CONFIG, work_dir / 'epoch_3.pth', '--work-dir',
                                    tmp_path / execution, '--execution', execution),
                           *options(data_root))
        assert code == 0, output[-3000:]
        report = json.loads(next((tmp_path / execution).rglob('test.json')).read_text())
        assert report['stamp']['execution'] == execution
        results = json.loads(next((tmp_path / execution).glob('*/results.json')).read_text())
        assert (results['execution'], results['target']) == (execution, 0.5)
        assert '| mAP / mAP50 of boxes ' in output and 'predicted for TX2' in output
        metrics[execution] = dict(results['metrics'], rate=report['rate'])
    for key in ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'rate', 'backbone_flops_g'):
        assert metrics['masked'][key] == pytest.approx(metrics['skipping'][key], abs=1e-3)


@pytest.mark.parametrize('detector', ['faster_rcnn', 'mask2former'])
def test_detectors_train_and_report_on_two_processes(detector, data_root, tmp_path):
    loop = ("_delete_=True, type='IterBasedTrainLoop'" if detector == 'faster_rcnn'
            else 'dynamic_intervals=None')
    (tmp_path / 'short.py').write_text(
        f"_base_ = '{ROOT}/configs/{detector}_laud_demo.py'\n"
        f'train_cfg = dict({loop}, max_iters=2, val_interval=2)\n'
        "train_dataloader = dict(sampler=dict(type='InfiniteSampler'))\n"
        + 'model = dict(panoptic_head=dict(in_channels=[32, 64, 128, 256]))\n'
        * (detector == 'mask2former'))
    left_out = ('train_cfg', *(['model.neck'] if detector == 'mask2former' else []))
    keep = [o for o in options(data_root) if not o.startswith(left_out)]
    code, output = run('bash', str(ROOT / 'tools' / 'dist_train.sh'), str(tmp_path / 'short.py'),
                       '2', '--work-dir', str(tmp_path / 'out'), *keep)
    assert code == 0, output[-3000:]
    assert sorted(logged(tmp_path / 'out', 'loss_activation')) == [1, 2]
    report = json.loads(next((tmp_path / 'out').rglob('val_iter_2.json')).read_text())
    assert report['images'] == 4  # two of each process
    assert report['measured']['static']['repeats'] == 4


@pytest.mark.parametrize('tool, extra', [('train.py', ()), ('test.py', ('absent.pth',))])
def test_missing_data_stops_before_any_work(tool, extra, tmp_path):
    code, output = run(*command(tool, ROOT / 'configs' / 'faster_rcnn_laud_r50.py', *extra,
                                '--work-dir', tmp_path / 'out'), cwd=tmp_path)
    assert code == 1 and 'Traceback' not in output
    assert 'data/coco/annotations/instances_' in output and 'data_root' in output
    assert not (tmp_path / 'out').exists()


def test_missing_files_are_named(tmp_path, data_root):
    code, output = run(*command('train.py', tmp_path / 'absent.py'))
    assert code == 1 and 'config must be an existing file' in output
    code, output = run(*command('train.py', CONFIG, '--resume', 'absent.pth'),
                       *options(data_root))
    assert code == 1 and '--resume must be an existing checkpoint, got absent.pth' in output


def test_a_wrong_stack_is_named_before_its_imports_fail(tmp_path):
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / 'version.py').write_text("__version__ = '0.26.0+cpu'\n")
    (package / '__init__.py').write_text("raise RuntimeError('operator nms does not exist')\n")
    code, output = run(*command('train.py', CONFIG), env=dict(PYTHONPATH=str(tmp_path)))
    assert code == 1 and 'Traceback' not in output
    assert 'torchvision' in output and 'install both from the same index' in output
