"""Converting there and back: bit-exact, complete or refused."""
import builtins
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from laud_mm.checkpoints import CheckpointError, convert_file, load_state_dict, save_state_dict
from laud_mm.checkpoints.architecture import infer_backbone
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet
from laud_mm.registry import MODELS
from laud_mm.weights.layout import add_classifier_prefixes

from ..conftest import TINY_REGNET

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'convert_checkpoint.py'
NETS = {'resnet': lambda **kw: LAUDResNet(50, base_channels=8, **kw),
        'regnet': lambda **kw: LAUDRegNet(TINY_REGNET, **kw)}


def assert_identical(first, second):
    assert list(first) == list(second)
    for key, value in first.items():
        assert value.dtype == second[key].dtype and torch.equal(value, second[key]), key


def with_classifier(net):
    """A backbone's weights and a classifier of 10 classes, with our keys."""
    channels = net.blocks()[-1].shape.out_channels
    return {**net.state_dict(), 'fc.weight': torch.rand(10, channels), 'fc.bias': torch.rand(10)}


@pytest.mark.parametrize('name, config', [
    ('resnet50', dict(type='LAUDResNet', depth=50)),
    ('resnet101', dict(type='LAUDResNet', depth=101)),
    ('regnet_y_400mf', dict(type='LAUDRegNet')), ('regnet_y_800mf', dict(type='LAUDRegNet'))])
def test_torchvision_to_ours_and_back_is_bit_exact(tmp_path, name, config):
    import torchvision
    theirs = torchvision.models.get_model(name).state_dict()
    torch.save(theirs, tmp_path / 'theirs.pth')
    done = convert_file('torchvision', tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert done.backbone['type'] == f'laud_mm.{config.pop("type")}'
    assert config.items() <= done.backbone.items()
    net = MODELS.build(dict(done.backbone, out_indices=(3, )))
    missing, unexpected = net.load_state_dict(done.state_dict, strict=False)
    assert (missing, unexpected) == ([], ['fc.weight', 'fc.bias'])
    convert_file('laud', tmp_path / 'ours.pth', tmp_path / 'back.pth', target='torchvision')
    assert_identical(theirs, load_state_dict(tmp_path / 'back.pth'))


def test_mmpretrain_to_ours_and_back_is_bit_exact(tmp_path):
    pytest.importorskip('mmpretrain')
    from mmpretrain.models import ResNet
    theirs = {f'backbone.{k}': v for k, v in ResNet(50, base_channels=8).state_dict().items()
              } | {'head.fc.weight': torch.rand(10, 256), 'head.fc.bias': torch.rand(10)}
    save_state_dict(theirs, tmp_path / 'theirs.pth')
    done = convert_file('mmpretrain', tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    MODELS.build(done.backbone).load_state_dict(
        {k: v for k, v in done.state_dict.items() if not k.startswith('fc.')})
    convert_file('laud', tmp_path / 'ours.pth', tmp_path / 'back.pth', target='mmpretrain')
    assert_identical(theirs, load_state_dict(tmp_path / 'back.pth'))


@pytest.mark.parametrize('paradigm', ['layer', 'channel', 'spatial', 'both'])
@pytest.mark.parametrize('arch', NETS)
def test_the_static_part_of_a_trained_classifier_leaves_its_maskers_behind(
        tmp_path, arch, paradigm):
    weights = with_classifier(NETS[arch](paradigm=paradigm))
    save_state_dict(add_classifier_prefixes(weights), tmp_path / 'trained.pth')
    done = convert_file('laud', tmp_path / 'trained.pth', tmp_path / 'static.pth',
                        target='torchvision')
    static = with_classifier(NETS[arch](paradigm=None))
    assert set(done.state_dict) == set(static)
    assert set(done.dropped) == set(weights) - set(static)
    assert_identical(done.state_dict, {k: weights[k] for k in done.state_dict})


@pytest.mark.parametrize('kwargs', [
    dict(paradigm=None), dict(paradigm='layer'), dict(paradigm='channel', channel_granularity=4),
    dict(paradigm='both', masker=dict(channel='linear')),
    dict(paradigm='channel', masker=dict(channel='conv_linear')),
    dict(paradigm=('layer', None, 'channel', 'layer'))], ids=str)
@pytest.mark.parametrize('arch', NETS)
def test_the_backbone_is_inferred_from_the_weights(arch, kwargs):
    weights = NETS[arch](**kwargs).state_dict()
    assert_identical(weights, {k: weights[k] for k in MODELS.build(
        infer_backbone(weights)).state_dict()})


def test_static_weights_for_a_dynamic_config_name_the_fresh_maskers(tmp_path):
    save_state_dict(with_classifier(NETS['resnet'](paradigm=None)), tmp_path / 'src.pth')
    backbone = dict(type='laud_mm.LAUDResNet', depth=50, base_channels=8, paradigm='layer')
    done = convert_file('torchvision', tmp_path / 'src.pth', tmp_path / 'dst.pth',
                        backbone=backbone)
    assert len(done.fresh) == 2 * 16 and all('.masker.' in key for key in done.fresh)


def _without(key):
    return lambda weights: weights.pop(key)


@pytest.mark.parametrize('spoil, message', [
    (_without('layer3.2.conv2.weight'), '1 missing: layer3.2.conv2.weight'),
    (_without('layer1.1.masker.layer.conv.bias'), '1 missing: layer1.1.masker.layer.conv.b'),
    (lambda w: w.update({'layer1.0.downsample.3.weight': torch.zeros(1)}), '1 of .* keys are not'),
    (lambda w: w.update({'layer3.9.conv1.weight': torch.zeros(1)}), '1 unexpected: layer3.9.conv1'),
    (lambda w: w.update({'bn1.weight': torch.zeros(3)}),
     r'1 mismatched: bn1.weight \(3,\) for \(8,\)'),
], ids=['missing', 'missing-masker', 'foreign', 'unexpected', 'shape'])
def test_weights_that_do_not_fit_completely_are_refused(tmp_path, spoil, message):
    weights = with_classifier(NETS['resnet'](paradigm='layer'))
    spoil(weights)
    save_state_dict(weights, tmp_path / 'src.pth')
    with pytest.raises(CheckpointError, match=message):
        convert_file('laud', tmp_path / 'src.pth', tmp_path / 'dst.pth')
    assert [p.name for p in tmp_path.iterdir()] == ['src.pth']


def test_weights_of_another_network_than_the_config_are_refused(tmp_path):
    save_state_dict(with_classifier(NETS['resnet'](paradigm=None)), tmp_path / 'src.pth')
    with pytest.raises(CheckpointError, match='do not fit laud_mm.LAUDResNet: .* mismatched'):
        convert_file('torchvision', tmp_path / 'src.pth', tmp_path / 'dst.pth',
                     backbone=dict(type='laud_mm.LAUDResNet', depth=50, base_channels=16))
    with pytest.raises(CheckpointError, match='cannot be inferred .* name a config'):
        infer_backbone({'conv1.weight': torch.zeros(8, 3, 7, 7)})


def test_mmpretrain_has_no_place_for_a_regnety(tmp_path):
    save_state_dict(NETS['regnet']().state_dict(), tmp_path / 'src.pth')
    with pytest.raises(CheckpointError, match='no RegNetY'):
        convert_file('laud', tmp_path / 'src.pth', tmp_path / 'dst.pth', target='mmpretrain')
    with pytest.raises(ValueError, match='target must be one of laud, torchvision, mmpretrain'):
        convert_file('laud', tmp_path / 'src.pth', tmp_path / 'dst.pth', target='timm')
    assert not (tmp_path / 'dst.pth').exists()


class Malicious:
    """Pickles to a call that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_runs_for_trust_alone_and_nothing_is_written_else(tmp_path):
    weights = with_classifier(NETS['resnet'](paradigm=None))
    torch.save(dict(state_dict=weights, hook=Malicious(tmp_path / 'ran')), tmp_path / 'src.pth')

    def run(*args):
        return subprocess.run([sys.executable, TOOL, '--source', 'torchvision', *args,
                               tmp_path / 'src.pth', tmp_path / 'dst.pth'],
                              capture_output=True, text=True)
    refused = run()
    assert refused.returncode == 1 and 'could run code' in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['src.pth']
    trusted = run('--trust')
    assert trusted.returncode == 0 and 'they fill laud_mm.LAUDResNet completely' in trusted.stdout
    assert (tmp_path / 'ran').exists()
    assert_identical(weights, load_state_dict(tmp_path / 'dst.pth'))


def test_safetensors_carry_weights_both_ways(tmp_path):
    pytest.importorskip('safetensors')
    weights = with_classifier(NETS['regnet'](paradigm='channel'))
    weights['fc.weight'] = torch.rand(48, 10).t()  # a view, which the format does not know
    save_state_dict(weights, tmp_path / 'src.safetensors')
    convert_file('laud', tmp_path / 'src.safetensors', tmp_path / 'dst.pth')
    convert_file('laud', tmp_path / 'dst.pth', tmp_path / 'back.safetensors')
    back = load_state_dict(tmp_path / 'back.safetensors')
    assert_identical({k: weights[k] for k in sorted(weights)}, {k: back[k] for k in sorted(back)})
    (tmp_path / 'cut.safetensors').write_bytes(b'\x10')
    with pytest.raises(CheckpointError, match='cut.safetensors is not a readable checkpoint'):
        load_state_dict(tmp_path / 'cut.safetensors')


def test_a_missing_safetensors_library_is_named(tmp_path, monkeypatch):
    original = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith('safetensors'):
            raise ImportError(name)
        return original(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', absent)
    (tmp_path / 'a.safetensors').touch()
    for call in (load_state_dict, lambda path: save_state_dict({'a': torch.zeros(1)}, path)):
        with pytest.raises(CheckpointError, match='pip install safetensors'):
            call(tmp_path / 'a.safetensors')


def test_maskers_of_layers_load_under_their_old_name(make_net, tmp_path):
    net, other = make_net(paradigm='layer'), make_net(paradigm='layer')
    old = {key.replace('.masker.layer.', '.masker.spatial.'): value
           for key, value in net.state_dict().items()}
    assert any('.masker.spatial.' in key for key in old)
    other.load_state_dict(old)  # strict
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(),
                                                 other.state_dict().values()))
    assert all(masker.loaded for masker in other.maskers())
    save_state_dict(old, tmp_path / 'old.pth')
    third = make_net(paradigm='layer', init_cfg=dict(type='Pretrained',
                                                     checkpoint=str(tmp_path / 'old.pth')))
    third.init_weights()
    assert torch.equal(third.layer4[0].masker.layer.conv.weight,
                       net.layer4[0].masker.layer.conv.weight)
