"""tools/deploy.py writes an artefact and its card, and checks them."""
import json
import subprocess
import sys

import pytest
import torch

from laud_mm.commands import deploy as command
from laud_mm.deploy import UnitProfile, deploy, load
from laud_mm.deploy.check import compare
from laud_mm.registry import MODELS
from laud_mm.specs import find_backbone_config
from laud_mm.utils.run import load_config

from ..conftest import ROOT
from .nets import build, images

RUNTIMES = dict(onnx='onnxruntime', openvino='openvino')
CONFIG = ROOT / 'configs' / 'laud_resnet_digits_channel.py'


def run(*args, cwd):
    done = subprocess.run([sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'deploy.py'),
                           *map(str, args)], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize('kind', [
    pytest.param('aoti', marks=pytest.mark.slow), pytest.param('compile', marks=pytest.mark.slow),
    'onnx', 'openvino'])
def test_the_tool_writes_checks_and_says_what_it_is(kind, tmp_path):
    if kind in RUNTIMES:
        pytest.importorskip(RUNTIMES[kind], reason=f'{RUNTIMES[kind]} is not installed')
    _, settings = find_backbone_config(load_config(str(CONFIG)).model)
    net = MODELS.build(settings.to_dict()).eval()
    names = [block.shape.name for block in net.blocks()]
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in net.state_dict().items()}),
               tmp_path / 'model.pth')
    (tmp_path / 'report.json').write_text(json.dumps(dict(images=9, blocks=[
        dict(name=name, rate=1.0 if name == names[0] else 0.5) for name in names])))
    code, said = run(CONFIG, tmp_path / 'model.pth', '--to', kind, '--size', 48, 48, '--profile',
                     tmp_path / 'report.json', '--decisions', '--out', tmp_path / 'out',
                     cwd=tmp_path)
    assert code == 0, said
    dynamic = len(names) - 1  # channels are skipped by our operations only
    blocks = f'0 blocks skip, {dynamic} mask' if kind in RUNTIMES else f'{dynamic} blocks skip'
    assert f'{blocks}, 1 are dense, 0 vanished' in said
    card = json.loads((tmp_path / 'out' / 'card.json').read_text())
    assert card['kind'] == kind and card['check']['decisions_equal']
    assert card['check']['largest_difference'] <= 1e-4 and card['net_bytes'] > 0
    assert [block['name'] for block in card['blocks']] == names
    assert all(block['flops_g'] > 0 for block in card['blocks'])
    assert card['expected_rates'][names[0]] == dict(all=1.0)
    assert card['decisions'] == [f'{name}.channels' for name in names[1:]]
    outputs, decisions = load(tmp_path / 'out')(images(2, 48, 48))
    assert len(outputs) == len(card['outputs']) and list(decisions) == card['decisions']


def test_what_fails_is_named(tmp_path):
    for args, message in (
            (('absent.py', '--out', 'out'), 'config must be an existing file, got absent.py'),
            ((CONFIG, 'absent.pth', '--out', 'out'), 'checkpoint must be an existing file'),
            ((CONFIG, '--one-image', '--out', 'out'), "one_image must be False for 'aoti'"),
            ((CONFIG, '--to', 'onnx', '--precision', 'bf16', '--out', 'out'),
             "precision must be fp32 for 'onnx'"),
            ((CONFIG, '--profile', 'absent.json', '--out', 'out'), 'profile must be a file')):
        code, said = run(*args, cwd=tmp_path)
        assert code == 1 and f'error: {message}' in said and 'Traceback' not in said


def test_a_wrong_artefact_fails_the_check():
    net = build('LAUDResNet', 'spatial')
    made = deploy(net, with_decisions=True)
    found = compare(net, made, [images(2, 48, 48)])
    assert found['decisions_equal'] and found['largest_difference'] < 1e-4 and found['images'] == 2
    command._check('it', found, made)
    with torch.no_grad():
        made.blocks()[1].weights.conv3.packed.mul_(1.5)
    with pytest.raises(command.CheckError, match='it differs from the skipping network by'):
        command._check('it', compare(net, made, [images(2, 48, 48)]), made)


@pytest.mark.parametrize('paradigm', ['layer', 'spatial', 'channel', 'both'])
def test_specialised_networks_are_compared_as_they_decide(paradigm):
    net = build('LAUDResNet', paradigm)
    seen, other = images(1, 48, 48, 3), images(4, 48, 48, 5)
    made = deploy(net, profile=UnitProfile.measure(net, [seen]), with_decisions=True)
    assert any(block.fixed for block in made.blocks()) or paradigm == 'spatial'
    found = compare(net, made, [other], decided=True)
    assert found['largest_difference'] < 1e-4 and found['decisions_equal'] in (True, None)
    changed = compare(net, made, [other])  # on images that the profile has not seen
    assert paradigm != 'channel' or changed['largest_difference'] > 1e-3
