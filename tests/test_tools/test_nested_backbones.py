"""The tools find a backbone wherever a config has it, and say so where it has none."""
import json
import runpy
import sys

import pytest
import torch

from laud_mm.models.backbones import LAUDResNet
from laud_mm.zoo import read_entries

from ..conftest import ROOT

BACKBONE = dict(type='laud_mm.LAUDResNet', depth=50, base_channels=4, in_channels=1)
PATHS = dict(
    teacher=dict(type='SemiBaseDetector', detector=dict(
        type='RetinaNet', backbone=BACKBONE, bbox_head=dict(num_classes=3))),
    module=dict(type='DetTTAModel', module=dict(backbone=BACKBONE, rpn_head=dict())))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a tool in this process; what it printed."""
    def run(tool, *args):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return capsys.readouterr().out
    return run


@pytest.fixture(params=PATHS)
def config(tmp_path, request):
    path = tmp_path / 'nested.py'
    path.write_text(f'model = {PATHS[request.param]!r}')
    return path


def test_flops(run, config):
    assert '64x96, G multiply-adds' in run('get_flops.py', config, '--shape', 64, 96)


def test_predictions_are_of_a_detector(run, config, tmp_path):
    run('latency.py', 'predict', '--config', config, '--device', 'V100', '--json',
        tmp_path / 'p.json')
    assert json.loads((tmp_path / 'p.json').read_text())['image_size'] == [800, 1216]


def test_measurements(run, config, tmp_path):
    run('latency.py', 'measure', '--config', config, '--size', 32, 32, '--repeats', 1, '--warmup',
        1, '--json', tmp_path / 'm.json')
    assert json.loads((tmp_path / 'm.json').read_text())['results'][0]['p50_ms'] > 0


def test_exports(run, config, tmp_path):
    weights = LAUDResNet(**{k: v for k, v in BACKBONE.items() if k != 'type'}).state_dict()
    torch.save({f'student.backbone.{k}': v for k, v in weights.items()}, tmp_path / 'semi.pth')
    args = (config, tmp_path / 'semi.pth', '--format', 'torchscript', '--size', 32, 32, '--out',
            tmp_path / 'net.pt')
    with pytest.raises(SystemExit, match="backbone.'; they start with student"):
        run('export.py', *args)
    run('export.py', *args, '--prefix', 'student.backbone.')
    assert (tmp_path / 'net.pt').is_file()


def test_conversions(run, config, tmp_path):
    net = LAUDResNet(50, base_channels=4, in_channels=1, paradigm=None)
    torch.save(net.state_dict(), tmp_path / 'src.pth')
    assert 'LAUDResNet completely' in run(
        'convert_checkpoint.py', '--source', 'laud', '--config', config, tmp_path / 'src.pth',
        tmp_path / 'dst.pth')


def test_entries_of_the_zoo(config, tmp_path):
    entry, = read_entries(tmp_path)
    assert entry.backbone == BACKBONE


@pytest.mark.parametrize('content', ["model = dict(backbone=dict(type='ResNet'))", 'a = 1'])
@pytest.mark.parametrize('tool, args', [
    ('get_flops.py', ['--shape', 64, 64]), ('export.py', []), ('latency.py', []),
    ('convert_checkpoint.py', ['--source', 'laud', 'a.pth', 'b.pth'])])
def test_a_config_without_a_laud_backbone_is_refused(run, tmp_path, tool, args, content):
    path = tmp_path / 'plain.py'
    path.write_text(content)
    args = {'latency.py': ['measure', '--config', path],
            'convert_checkpoint.py': [*args, '--config', path]}.get(tool, [path, *args])
    with pytest.raises(SystemExit, match='model must hold the config of one LAUD backbone'):
        run(tool, *args)
