"""Converting and safe reading of checkpoints."""
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from laud_mm.checkpoints import (
    CheckpointError,
    allow_runner_types,
    convert_file,
    convert_laudnet,
    find_resumable,
    load_state_dict,
)
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet

from ..conftest import ARCHS

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'convert_checkpoint.py'


def build(paradigm, arch=50):
    if arch == 50:
        return LAUDResNet(arch, base_channels=8, paradigm=paradigm)
    return LAUDRegNet(arch, paradigm=paradigm)


def released_state_dict(paradigm, prefix='', arch=50):
    """A checkpoint with the authors' keys, and the network it belongs to."""
    net, inside = build(paradigm, arch), '' if arch == 50 else '.f'
    names = {'.masker.spatial.conv.': f'{inside}.masker_spatial.conv.',
             '.masker.channel.fc1.': f'{inside}.masker_channel.conv.0.',
             '.masker.channel.fc2.': f'{inside}.masker_channel.conv.2.'}
    released = {}
    for key, value in net.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        released[prefix + key] = value
    released[f'{prefix}fc.weight'] = torch.rand(10, 256)
    released[f'{prefix}fc.bias'] = torch.rand(10)
    return net, released


@pytest.mark.parametrize('wrapped', [False, True], ids=['plain', 'in_state_dict'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('paradigm', ['layer', 'spatial', 'channel', 'both'])
@ARCHS
def test_released_checkpoints_load_completely(tmp_path, arch, paradigm, prefix, wrapped):
    net, released = released_state_dict(paradigm, prefix, arch)
    torch.save(dict(state_dict=released, epoch=3) if wrapped else released, tmp_path / 'src.pth')
    convert_file('laudnet', tmp_path / 'src.pth', tmp_path / 'dst.pth')
    weights = torch.load(tmp_path / 'dst.pth', weights_only=True)['state_dict']
    other = build(paradigm, arch)
    missing, unexpected = other.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == ([], ['fc.weight', 'fc.bias'])
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


def test_the_tool_converts_and_explains_failures(tmp_path):
    def run():
        return subprocess.run([sys.executable, TOOL, '--source', 'laudnet', tmp_path / 'src.pth',
                               tmp_path / 'dst.pth'], capture_output=True, text=True)
    result = run()
    assert result.returncode == 1 and 'src.pth is not a file' in result.stderr
    assert 'Traceback' not in result.stderr
    torch.save(released_state_dict('layer')[1], tmp_path / 'src.pth')
    assert run().returncode == 0 and (tmp_path / 'dst.pth').is_file()


def test_a_prefix_makes_a_classifiers_checkpoint(tmp_path):
    torch.save(released_state_dict('layer')[1], tmp_path / 'src.pth')
    converted = convert_file('laudnet', tmp_path / 'src.pth', tmp_path / 'dst.pth',
                             'backbone.').state_dict
    assert 'head.fc.weight' in converted
    assert 'backbone.layer1.0.masker.layer.conv.bias' in converted


def test_foreign_keys_are_refused_and_nothing_is_written(tmp_path):
    _, released = released_state_dict('layer')
    released['encoder.weight'] = torch.zeros(1)
    torch.save(released, tmp_path / 'src.pth')
    with pytest.raises(CheckpointError, match='1 of .* keys are not.*encoder.weight'):
        convert_file('laudnet', tmp_path / 'src.pth', tmp_path / 'dst.pth')
    assert not (tmp_path / 'dst.pth').exists()
    with pytest.raises(CheckpointError, match='no conv1.weight'):
        convert_laudnet({'fc.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='source must be one of laud, laudnet'):
        convert_file('timm', tmp_path / 'src.pth', tmp_path / 'dst.pth')


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_that_run_code_are_refused(tmp_path):
    torch.save({'state_dict': {'conv1.weight': Malicious(tmp_path / 'ran')}}, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match='more than weights'):
        load_state_dict(tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', None], ids=['empty', 'text', 'cut'])
def test_broken_files_are_named(tmp_path, content):
    path = tmp_path / 'broken.pth'
    if content is None:
        torch.save({'a': torch.zeros(1000)}, path)
        content = path.read_bytes()[:-500]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='broken.pth'):
        load_state_dict(path)


def test_files_without_a_state_dict_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='no state dict'):
        load_state_dict(tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='is not a file'):
        load_state_dict(tmp_path / 'absent.pth')


class GetAttr:
    """Pickles to a call of getattr, which plain unpickling would obey."""

    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return getattr, self.args


def test_the_allow_list_lets_log_histories_in_and_getattr_out(tmp_path):
    from mmengine.logging import HistoryBuffer
    allow_runner_types()
    torch.save(dict(history=HistoryBuffer([1.0, 2.0], [1, 1])), tmp_path / 'good.pth')
    assert torch.load(tmp_path / 'good.pth')['history'].mean() == 1.5
    for owner, name in ((HistoryBuffer, '__init__'), (torch.Tensor, 'numpy')):
        torch.save(dict(x=GetAttr(owner, name)), tmp_path / 'bad.pth')
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / 'bad.pth')


def save(path, cut=0):
    torch.save({'a': torch.zeros(1000)}, path)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])


def test_a_half_written_checkpoint_is_never_resumed_from(tmp_path):
    assert find_resumable(tmp_path) is None
    save(tmp_path / 'epoch_1.pth')
    save(tmp_path / 'epoch_2.pth')
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
    assert find_resumable(tmp_path) == tmp_path / 'epoch_2.pth'  # the folder was moved
    save(tmp_path / 'epoch_2.pth', cut=300)
    assert find_resumable(tmp_path) == tmp_path / 'epoch_1.pth'
    (tmp_path / 'last_checkpoint').write_text('')
    assert find_resumable(tmp_path) == tmp_path / 'epoch_1.pth'
    save(tmp_path / 'epoch_1.pth', cut=300)
    assert find_resumable(tmp_path) is None
