"""tools/deploy.py writes an artefact and its card, and checks them."""
import argparse
import json
import subprocess
import sys

import pytest
import torch

from laud_mm.commands import deploy as command
from laud_mm.commands import quantize
from laud_mm.deploy import UnitProfile, deploy, load, load_scales
from laud_mm.deploy.check import compare
from laud_mm.registry import MODELS
from laud_mm.specs import find_backbone_config
from laud_mm.utils.run import load_config

from ..conftest import ROOT
from ..test_export import SMALL
from .nets import build, images

RUNTIMES = dict(onnx='onnxruntime', openvino='openvino')
CONFIG = ROOT / 'configs' / 'laud_resnet_digits_channel.py'


def run(*args, cwd):
    done = subprocess.run([sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'deploy.py'),
                           *map(str, args)], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def parsed(*args):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(list(map(str, args)))


def written(folder):
    """A checkpoint and a report that knows the first block as always on; the blocks' names."""
    _, settings = find_backbone_config(load_config(str(CONFIG)).model)
    net = MODELS.build(settings.to_dict()).eval()
    names = [block.shape.name for block in net.blocks()]
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in net.state_dict().items()}),
               folder / 'model.pth')
    (folder / 'report.json').write_text(json.dumps(dict(images=9, blocks=[
        dict(name=name, rate=1.0 if name == names[0] else 0.5) for name in names])))
    return names, [CONFIG, folder / 'model.pth', '--size', 48, 48, '--profile',
                   folder / 'report.json', '--decisions', '--out', folder / 'out']


def check_card(folder, kind, names):
    card = json.loads((folder / 'card.json').read_text())
    assert card['kind'] == kind and card['check']['decisions_equal']
    assert card['check']['largest_difference'] <= 1e-4 and card['net_bytes'] > 0
    assert [block['name'] for block in card['blocks']] == names
    assert all(block['flops_g'] > 0 for block in card['blocks'])
    assert card['expected_rates'][names[0]] == dict(all=1.0)
    assert card['decisions'] == [f'{name}.channels' for name in names[1:]]
    outputs, decisions = load(folder)(images(2, 48, 48))
    assert len(outputs) == len(card['outputs']) and list(decisions) == card['decisions']


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['aoti', 'compile'])
def test_the_tool_writes_checks_and_says_what_it_is(kind, tmp_path):
    names, args = written(tmp_path)
    code, said = run(*args, '--to', kind, cwd=tmp_path)
    assert code == 0, said
    assert f'{len(names) - 1} blocks skip, 1 are dense, 0 vanished' in said
    check_card(tmp_path / 'out', kind, names)


@pytest.mark.parametrize('kind', RUNTIMES)
def test_files_of_other_runtimes_are_written_and_checked(kind, tmp_path):
    pytest.importorskip(RUNTIMES[kind], reason=f'{RUNTIMES[kind]} is not installed')
    names, args = written(tmp_path)
    card = command.run(parsed(*args, '--to', kind))
    # Channels are skipped by our operations only.
    assert f'0 blocks skip, {len(names) - 1} mask, 1 are dense' in command.summary(card, 'out')
    check_card(tmp_path / 'out', kind, names)
    for more, message in ((['--one-image', '--to', 'aoti'], "one_image must be False for 'aoti'"),
                          (['--precision', 'bf16'], f"precision must be fp32 for '{kind}'")):
        with pytest.raises(ValueError, match=message):
            command.run(parsed(*args, '--to', kind, *more))


@pytest.mark.parametrize('kind', RUNTIMES)
def test_transformers_become_files_of_other_runtimes(kind, tmp_path):
    pytest.importorskip(RUNTIMES[kind], reason=f'{RUNTIMES[kind]} is not installed')
    settings, _ = SMALL['LAUDT2TViT']
    (tmp_path / 'net.py').write_text('model = ' + repr(dict(type='ImageClassifier', backbone=dict(
        settings, type='laud_mm.LAUDT2TViT', paradigm='token'))))
    args = (tmp_path / 'net.py', '--to', kind, '--size', 48, 56, '--decisions', '--out',
            tmp_path / 'out')
    card = command.run(parsed(*args))
    assert {block['computes'] for block in card['blocks']} == {'skipped by gather: tokens'}
    assert '4 blocks skip, 0 are dense' in command.summary(card, 'out')
    assert card['check']['largest_difference'] < 1e-4
    with pytest.raises(ValueError, match='one_image must be left out for a transformer'):
        command.run(parsed(*args, '--one-image'))


def test_a_net_is_quantised_from_a_folder_of_images(tmp_path):
    """tools/quantize.py writes scales, by which tools/deploy.py writes an artefact."""
    from PIL import Image
    config = ROOT / 'configs' / 'laud_resnet_digits.py'
    _, settings = find_backbone_config(load_config(str(config)).model)
    net = MODELS.build(settings.to_dict()).eval()
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in net.state_dict().items()}),
               tmp_path / 'model.pth')
    (tmp_path / 'images').mkdir()
    for i in range(4):
        pixels = torch.randint(0, 256, (48, 48, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{i}.png')

    def parsed(module, *args):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        return parser.parse_args([str(config), str(tmp_path / 'model.pth'), *map(str, args)])

    out = tmp_path / 'scales.json'
    found = quantize.run(parsed(quantize, '--calib', tmp_path / 'images', '--images', 3, '--out',
                                out))
    assert found['images'] == load_scales(out).images == 3
    assert found['decisions'] == 3 * len(net.blocks()) and 0 < found['mean_difference'] < 0.2
    assert f'{out}: scales of 3 images; there ' in quantize.summary(found, out)
    card = command.run(parsed(command, '--to', 'compile', '--size', 48, 48, '--quantized', out,
                              '--out', tmp_path / 'net'))
    assert card['computes_in'] == 'int8' and 0 < card['check']['mean_difference'] < 0.2
    (y,) = load(tmp_path / 'net')(images(2, 48, 48))
    assert y.shape[0] == 2 and y.isfinite().all()

    for folder, count, message in (('none', 3, '--calib must be a folder with images'),
                                   ('images', 0, '--images must be at least 1, got 0')):
        with pytest.raises(ValueError, match=message):
            quantize.image_files(str(tmp_path / folder), count)


def test_what_fails_is_named(tmp_path):
    for args, message in (
            (('absent.py', '--out', 'out'), 'config must be an existing file, got absent.py'),
            ((CONFIG, 'absent.pth', '--out', 'out'), 'checkpoint must be an existing file'),
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
