"""T2T-ViT checkpoints of AdaViT, T2T-ViT and mmcls become ours, with their numbers."""
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from laud_mm.checkpoints import (
    CheckpointError,
    convert_adavit,
    convert_file,
    convert_mmcls_t2t_vit,
    convert_t2t_vit,
    load_state_dict,
    save_state_dict,
)
from laud_mm.models.backbones import LAUDT2TViT
from laud_mm.registry import MODELS
from laud_mm.specs.networks import infer_t2t_vit

from ..conftest import TINY_T2T

REFERENCES = sorted((Path(__file__).parents[1] / 'data').glob('adavit_t2t_*.npz'))
# As wide as the published nets per head and token, so that the weights tell the heads.
WIDE_T2T = dict(embed_dims=128, num_layers=2, num_heads=2, feedforward_channels=100)


def released_weights(data):
    return {key.removeprefix('weights/'): torch.from_numpy(data[key]).float()
            for key in data.files if key.startswith('weights/')}


def test_the_references_are_here():
    assert len(REFERENCES) == 4


@pytest.mark.parametrize('execution', ['masked', 'skipping'])
@pytest.mark.parametrize('path', REFERENCES, ids=lambda p: p.stem)
def test_adavits_logits_and_decisions_equal_the_reference(path, execution):
    data = np.load(path)
    weights = convert_adavit(released_weights(data))
    classifier = [weights.pop(f'layers.head.{kind}') for kind in ('weight', 'bias')]
    net = LAUDT2TViT(execution=execution, **infer_t2t_vit(weights, num_heads=4)).eval()
    net.load_state_dict(weights)
    with torch.no_grad():
        logits = F.linear(net(torch.from_numpy(data['input']))[-1], *classifier)
    expected = torch.from_numpy(data['logits'])
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()

    decisions = [block.decision for block in net.record.blocks]
    for theirs, ours, first in (('head_select', 'heads', 1), ('layer_select', 'branches', 1),
                                ('token_select', 'all_tokens', 0)):
        masks = [getattr(d, ours) for d in decisions[first:]]
        assert (theirs in data.files) == (masks[0] is not None)
        if theirs in data.files:
            assert np.array_equal(torch.stack(masks, 1), data[theirs])


def test_a_released_checkpoint_becomes_a_classifiers(tmp_path):
    released = {f'module.{k}': v for k, v in released_weights(np.load(REFERENCES[0])).items()}
    torch.save(dict(state_dict=released), tmp_path / 'src.pth')
    weights = convert_file('adavit', tmp_path / 'src.pth', tmp_path / 'dst.pth',
                           'backbone.').state_dict
    assert {k for k in weights if not k.startswith('backbone.')} == {
        'head.layers.head.weight', 'head.layers.head.bias'}
    own = {k.removeprefix('backbone.'): v for k, v in weights.items() if 'backbone.' in k}
    arguments = infer_t2t_vit(own)
    assert arguments == dict(
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=192), img_size=64,
        in_channels=3, token_dim=32, t2t_type='performer', qkv_bias=False,
        paradigm=('token', 'head', 'layer'))
    net = LAUDT2TViT(**arguments)
    net.load_state_dict(own)
    assert all(masker.loaded for masker in net.maskers())


def released_names(state_dict):
    """T2T-ViT's names of our weights."""
    return {re.sub(r'^encoder\.', 'blocks.', key): value for key, value in state_dict.items()}


def split_queries(state_dict):
    """AdaViT's three matrices for our joint one."""
    split = {}
    for key, value in released_names(state_dict).items():
        if key.startswith('blocks.') and '.attn.qkv.' in key:
            for part, third in zip(('query', 'key', 'value'), value.chunk(3)):
                split[key.replace('qkv', part)] = third
        else:
            key = re.sub(r'\.masker\.token\.fc\.', '.attn.token_select.mlp_head.', key)
            split[re.sub(r'\.masker\.(\w+)\.fc\.', r'.\1_select.mlp_head.', key)] = value
    return split


@pytest.mark.parametrize('arch', [TINY_T2T, WIDE_T2T], ids=str)
@pytest.mark.parametrize('paradigm', [None, 'token', ('head', 'layer'), ('token', 'head')],
                         ids=str)
@pytest.mark.parametrize('qkv_bias', [False, True])
def test_adavit_checkpoints_of_any_shape_convert_completely(arch, paradigm, qkv_bias):
    settings = dict(img_size=96, in_channels=2, token_dim=8, qkv_bias=qkv_bias, paradigm=paradigm)
    net = LAUDT2TViT(arch, **settings)
    converted = convert_adavit(split_queries(net.state_dict()))
    assert set(converted) == set(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in converted.items())
    found = infer_t2t_vit(converted, arch['num_heads'])
    paradigms = (paradigm,) if isinstance(paradigm, str) else paradigm
    assert found == dict(settings, arch=arch, t2t_type='performer', paradigm=paradigms)


def authors_t2t_layer(weights, x):
    """T2T-ViT-t's layer as its authors scale it: scores by the input's channels."""
    def linear(name, y):
        return F.linear(y, weights[f'{name}.weight'], weights.get(f'{name}.bias'))

    def norm(name, y):
        return F.layer_norm(y, y.shape[-1:], weights[f'{name}.weight'], weights[f'{name}.bias'])
    q, k, v = linear('attn.qkv', norm('norm1', x)).chunk(3, -1)
    mixed = (q @ k.transpose(1, 2) * x.shape[-1]**-0.5).softmax(-1) @ v
    y = v + linear('attn.proj', mixed)
    return y + linear('mlp.fc2', F.gelu(linear('mlp.fc1', norm('norm2', y))))


@pytest.mark.parametrize('convert, rename', [
    (convert_t2t_vit, released_names),
    (convert_mmcls_t2t_vit, lambda own: {
        f'backbone.{k}'.replace('norm1', 'ln1').replace('norm2', 'ln2')
        .replace('mlp.fc1', 'ffn.layers.0.0').replace('mlp.fc2', 'ffn.layers.1'): v
        for k, v in own.items()})], ids=['t2t_vit', 'mmcls'])
def test_t2t_vit_t_keeps_the_authors_scale_of_scores(convert, rename):
    net = LAUDT2TViT(TINY_T2T, img_size=64, token_dim=16, t2t_type='transformer', paradigm=None)
    released = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict(convert(rename(released)))
    prefix, x = 'tokens_to_token.attention1.', torch.randn(2, 30, 147)
    theirs = {k.removeprefix(prefix): v for k, v in released.items() if k.startswith(prefix)}
    with torch.no_grad():
        torch.testing.assert_close(net.tokens_to_token.attention1(x), authors_t2t_layer(theirs, x))
    blocks = {k for k in released if k.startswith('encoder.')}
    assert all(torch.equal(net.state_dict()[k], released[k]) for k in blocks)


def without_maskers(weights):
    return {k: v for k, v in weights.items() if '.masker.' not in k and '_select.' not in k}


def round_trip(folder, theirs, project):
    """Convert weights to ours and back; both conversions and the weights that came back."""
    save_state_dict(theirs, folder / 'theirs.pth')
    ours = convert_file(project, folder / 'theirs.pth', folder / 'ours.pth')
    back = convert_file('laud', folder / 'ours.pth', folder / 'back.pth', target=project)
    return ours, back, load_state_dict(folder / 'back.pth')


@pytest.mark.parametrize('project, rename', [('t2t_vit', released_names),
                                             ('adavit', split_queries)])
def test_the_authors_weights_come_back_bit_for_bit_without_maskers(tmp_path, project, rename):
    net = LAUDT2TViT(WIDE_T2T, img_size=64, paradigm=('token', 'head', 'layer'))
    theirs = dict(rename(net.state_dict()), **{'head.weight': torch.rand(5, 128),
                                               'head.bias': torch.rand(5)})
    ours, back, returned = round_trip(tmp_path, theirs, project)
    assert ours.backbone['arch'] == WIDE_T2T and ours.backbone['type'] == 'laud_mm.LAUDT2TViT'
    expected = without_maskers(theirs)
    assert set(returned) == set(expected) and len(back.dropped) == len(theirs) - len(expected)
    assert all(torch.equal(returned[key], value) for key, value in expected.items())


def test_t2t_vit_t_comes_back_to_rounding_and_its_blocks_bit_for_bit(tmp_path):
    theirs = released_names(LAUDT2TViT(WIDE_T2T, img_size=64, t2t_type='transformer',
                                       paradigm=None).state_dict())
    _, _, returned = round_trip(tmp_path, theirs, 't2t_vit')
    assert set(returned) == set(theirs)
    for key, value in theirs.items():
        scaled = key.startswith('tokens_to_token.') and '.qkv.' in key
        torch.testing.assert_close(returned[key], value, atol=0, rtol=2e-7 if scaled else 0)


def test_mmpretrains_weights_come_back_bit_for_bit_and_give_its_numbers(tmp_path):
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    theirs = backbones.T2T_ViT(
        img_size=64, embed_dims=128, num_layers=2, t2t_cfg=dict(token_dims=64),
        layer_cfgs=dict(num_heads=2, feedforward_channels=100))
    weights = {f'backbone.{k}': v for k, v in theirs.state_dict().items()}
    weights.update({'head.layers.head.weight': torch.rand(5, 128),
                    'head.layers.head.bias': torch.rand(5)})
    ours, _, returned = round_trip(tmp_path, weights, 'mmpretrain')
    assert set(returned) == set(weights)
    assert all(torch.equal(returned[key], value) for key, value in weights.items())
    net = MODELS.build(ours.backbone).eval()
    net.load_state_dict({k: v for k, v in ours.state_dict.items() if 'layers.head' not in k})
    theirs.eval()  # returns nothing
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[-1], theirs(x)[-1], rtol=1e-5, atol=1e-5)


def test_mmpretrains_scale_is_not_guessed_where_the_heads_are_unknown(tmp_path):
    net = LAUDT2TViT(TINY_T2T, img_size=64, t2t_type='transformer', paradigm=None)
    save_state_dict(net.state_dict(), tmp_path / 'src.pth')
    with pytest.raises(CheckpointError, match='do not tell the number of heads of 24 channels'):
        convert_file('laud', tmp_path / 'src.pth', tmp_path / 'dst.pth', target='mmpretrain')


@pytest.mark.parametrize('target, message', [
    ('torchvision', 'torchvision has no T2T-ViT'), ('laudnet', 'torchvision has no T2T-ViT'),
    ('mmpretrain', "no T2T-ViT with t2t_type='performer'")])
def test_a_performer_goes_to_no_project_that_lacks_it(tmp_path, target, message):
    save_state_dict(LAUDT2TViT(WIDE_T2T, img_size=64).state_dict(), tmp_path / 'src.pth')
    with pytest.raises(CheckpointError, match=message):
        convert_file('laud', tmp_path / 'src.pth', tmp_path / 'dst.pth', target=target)
    assert not (tmp_path / 'dst.pth').exists()


@pytest.mark.parametrize('convert', [convert_adavit, convert_t2t_vit, convert_mmcls_t2t_vit])
def test_what_does_not_fit_is_refused(convert):
    own = LAUDT2TViT(TINY_T2T, img_size=64, paradigm=None).state_dict()
    own = own if convert is convert_mmcls_t2t_vit else released_names(own)
    with pytest.raises(CheckpointError, match='1 of .* keys are not those of .*decoder.weight'):
        convert(dict(own, **{'decoder.weight': torch.zeros(1)}))
    with pytest.raises(CheckpointError, match='no cls_token or no first block'):
        convert({'norm.weight': torch.zeros(1)})
    with pytest.raises(CheckpointError, match='query.weight but no blocks.0.attn.key.weight'):
        convert_adavit({'blocks.0.attn.query.weight': torch.zeros(4, 4)})
