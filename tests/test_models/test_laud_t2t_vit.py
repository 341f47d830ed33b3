"""LAUDT2TViT as a backbone: mmpretrain's numbers, arguments, outputs, training, hooks."""
import copy
import json
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from laud_mm.hooks import ActivationHook, LatencyHook
from laud_mm.models.backbones import LAUDT2TViT
from laud_mm.models.backbones.tokens_to_token import Performer
from laud_mm.models.dynamic import (
    TransformerDecision,
    force_rate,
    gumbel_decide,
    override_decisions,
)
from laud_mm.models.dynamic.transformer import SigmoidMasker
from laud_mm.registry import MODELS
from laud_mm.specs import backbone_spec, t2t_vit_spec

from ..conftest import TINY_T2T, randomize_norms, run_block
from ..toy import ToyClassifier, make_runner

ALL = ('token', 'head', 'layer')


def mmpretrains(arch=TINY_T2T, img_size=64, **kwargs):
    """mmpretrain's net and ours with its weights."""
    t2t_vit = pytest.importorskip('mmpretrain.models.backbones').T2T_ViT
    theirs = t2t_vit(
        img_size=img_size, embed_dims=arch['embed_dims'], num_layers=arch['num_layers'],
        t2t_cfg=dict(token_dims=16), layer_cfgs=dict(
            num_heads=arch['num_heads'], feedforward_channels=arch['feedforward_channels']),
        out_indices=list(range(arch['num_layers'])), **kwargs)
    nn.init.normal_(theirs.cls_token)
    ours = LAUDT2TViT(arch, img_size, token_dim=16, t2t_type='transformer', paradigm=None,
                      out_indices=list(range(arch['num_layers'])),
                      **kwargs)
    missing, unexpected = ours.load_state_dict(randomize_norms(theirs).state_dict())
    assert (missing, unexpected) == ([], [])
    theirs.eval()  # returns nothing
    return theirs, ours.eval()


@pytest.mark.parametrize('out_type', ['cls_token', 'featmap', 'avg_featmap', 'raw'])
@pytest.mark.parametrize('size', [(64, 64), (80, 112)], ids=['own_size', 'other_size'])
def test_static_net_equals_mmpretrains(size, out_type):
    theirs, ours = mmpretrains(out_type=out_type)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(x)
        for ours.execution in ('masked', 'skipping'):
            outputs = ours(x)
            assert len(outputs) == len(expected) == 3
            for out, other in zip(outputs, expected):
                assert out.shape == other.shape
                assert (out - other).abs().max() <= 1e-5 * other.abs().max()


def test_published_t2t_vit_t_14_has_mmpretrains_weights_and_numbers():
    from laud_mm.specs.t2t_vit import T2T_VIT_ARCHS
    theirs, ours = mmpretrains(T2T_VIT_ARCHS['t2t_vit_14'], 224)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        out, expected = ours.double()(x)[-1], theirs.double()(x)[-1]
    assert out.shape == (1, 384)
    assert (out - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_position_embeddings_of_other_sizes_are_resized_as_mmpretrain_does():
    (theirs, ours), (small, _) = mmpretrains(img_size=96), mmpretrains(img_size=64)
    theirs.load_state_dict(small.state_dict())
    ours.load_state_dict(small.state_dict())
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed)


def test_performer_approaches_softmax_attention():
    """Positive random features estimate exp(q k) without bias: many of them come close."""
    layer = Performer(8, 4).double()
    layer.register_buffer('w', torch.randn(200_000, 4, dtype=torch.float64))
    k, q, v = (torch.randn(2, 6, 4, dtype=torch.float64) / 2 for _ in range(3))
    expected = torch.softmax(q @ k.transpose(1, 2), -1) @ v
    torch.testing.assert_close(layer._attend(k, q, v), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch='t2t_vit_7'), "arch must be one of 't2t_vit_14', .*got 't2t_vit_7'"),
    (dict(arch=14), 'arch must be one of .*or a dict with embed_dims.*got 14'),
    (dict(arch=dict(embed_dims=8)), 'arch must be one of .*or a dict with embed_dims, num_layers'),
    (dict(arch=dict(TINY_T2T, num_layers=0)), 'arch.num_layers must be a positive int, got 0'),
    (dict(arch=dict(TINY_T2T, num_heads=5)), 'num_heads must divide arch.embed_dims, got 5 for 24'),
    (dict(paradigm='spatial'), "paradigm must be one of 'token', 'head', 'layer', a tuple.*'spat"),
    (dict(paradigm=('token', 'token')), r"paradigm must be .*got \('token', 'token'\)"),
    (dict(t2t_type='linear'), "t2t_type must be one of 'performer', 'transformer', got 'linear'"),
    (dict(img_size=2), 'img_size must be an int >= 3 or a pair of them, got 2'),
    (dict(img_size=(64, 64, 3)), 'img_size must be an int >= 3 or a pair'),
    (dict(in_channels=0), 'in_channels must be a positive int, got 0'),
    (dict(token_dim=-1), 'token_dim must be a positive int, got -1'),
    (dict(out_indices=3), r'out_indices must be stage indices from 0 to 2, got \[3\]'),
    (dict(out_indices=(-4,)), r'out_indices must be stage indices from 0 to 2, got \[-4\]'),
    (dict(out_type='map'), "out_type must be one of 'cls_token', 'featmap', .*got 'map'"),
    (dict(frozen_stages=4), 'frozen_stages must be an int from -1 to 3, got 4'),
    (dict(drop_path_rate=1.5), 'drop_path_rate must be a number from 0 to 1, got 1.5'),
    (dict(drop_rate='0.1'), "drop_rate must be a number from 0 to 1, got '0.1'"),
    (dict(execution='sparse'), "execution must be one of 'auto', 'masked', 'skipping', got"),
], ids=lambda v: str(v) if isinstance(v, dict) else '')
def test_bad_arguments_name_the_field_and_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LAUDT2TViT(**dict(dict(arch=TINY_T2T), **kwargs))


@pytest.mark.parametrize('paradigm, per_block', [
    (None, [(), (), ()]), ('token', [('token',)] * 3), ('head', [(), ('head',), ('head',)]),
    ('layer', [(), ('layer',), ('layer',)]), (ALL, [('token',), ALL, ALL]),
    (('layer', 'token'), [('token',), ('token', 'layer'), ('token', 'layer')])])
def test_the_first_block_decides_on_tokens_only(make_net, paradigm, per_block):
    net = make_net(TINY_T2T, paradigm=paradigm)
    deciding = [tuple(dict(b.masker.named_children())) if b.masker else () for b in net.blocks()]
    assert deciding == per_block == [b.shape.paradigms for b in net.blocks()]
    added = set(net.state_dict()) - set(make_net(TINY_T2T, paradigm=None).state_dict())
    assert all(re.match(r'encoder\.\d\.masker\.(token|head|layer)\.fc\.', key) for key in added)


def test_decisions_follow_adavits_rules(make_net):
    net = make_net(TINY_T2T, paradigm=ALL)
    for masker in net.maskers():
        for parameter in masker.parameters():
            nn.init.normal_(parameter)
    block, x = net.encoder[1], torch.randn(4, 10, 24)
    with torch.no_grad():
        _, decision = run_block(block, x, masked=True)
        own = block.masker
        tokens = own.token.fc(block.norm1(x)[:, 1:])[..., 0].sigmoid() > 0.6
        assert torch.equal(decision.tokens, tokens)
        assert torch.equal(decision.heads, own.head.fc(x[:, 0]).sigmoid() > 0.5)
        assert torch.equal(decision.branches, own.layer.fc(x[:, 0]).sigmoid() > 0.5)
    assert decision.all_tokens[:, 0].all()
    assert all(0 < mask.float().mean() < 1 for mask in decision.masks().values())


def test_training_samples_above_the_threshold_at_temperature_5():
    masker = SigmoidMasker(4, 200_000, threshold=0.6).train()
    assert masker.temperature == 5
    nn.init.zeros_(masker.fc.weight)
    nn.init.constant_(masker.fc.bias, 1.0)
    mask = masker(torch.zeros(1, 4))
    # On where sigmoid((1 + logistic noise) / 5) > 0.6.
    expected = torch.sigmoid(torch.tensor(1 - 5 * np.log(0.6 / 0.4))).item()
    assert set(mask.unique().tolist()) == {0, 1}
    assert mask.mean().item() == pytest.approx(expected, abs=0.005)
    soft = torch.sigmoid(torch.tensor([0.0, 1.9, 2.1, 9.0]) / 5)
    hard = gumbel_decide(torch.tensor([0.0, 1.9, 2.1, 9.0]), torch.zeros(4), 5.0, False, 0.6)
    assert torch.equal(hard, (soft > 0.6).float())


def test_nearly_every_unit_starts_on():
    net = LAUDT2TViT(TINY_T2T, img_size=64, token_dim=16, paradigm=ALL).eval()
    net.init_weights()
    assert net.encoder[0].mlp.fc1.bias.abs().max() == 0
    with torch.no_grad():
        net(torch.rand(2, 3, 64, 64))
    assert net.record.cost().mean_rate == 1


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('paradigm', ['token', 'head', 'layer', ALL], ids=str)
def test_gradients_reach_all_maskers_and_weights(make_net, paradigm, with_cp):
    net = make_net(TINY_T2T, paradigm=paradigm, with_cp=with_cp, drop_rate=0.1,
                   attn_drop_rate=0.1, drop_path_rate=0.1).train()
    (net(torch.randn(8, 3, 64, 64))[-1]**2).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if 'masker' in name:
            assert parameter.grad.abs().max() > 0, name


def test_flops_pass_gradients_to_the_maskers(make_net):
    net = make_net(TINY_T2T, paradigm=ALL).train()
    net(torch.randn(4, 3, 64, 64))
    net.record.cost().fraction.sum().backward()
    assert all(p.grad.abs().max() > 0 for m in net.maskers() for p in m.parameters())


def test_activation_checkpointing_changes_nothing(make_net):
    net = make_net(TINY_T2T, paradigm=ALL, dtype=torch.float64).train()
    results = []
    for with_cp in (False, True):
        for block in net.blocks():
            block.with_cp = with_cp
        net.zero_grad()
        torch.manual_seed(1)
        output = net(torch.linspace(-1, 1, 2 * 3 * 64**2, dtype=torch.float64).view(2, 3, 64, 64))
        (output[0].sum() + net.record.cost().fraction.sum()).backward()
        results.append([p.grad for p in net.parameters()])
    for plain, checkpointed in zip(*results):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 3])
def test_frozen_stages_freeze_the_stem_and_the_first_blocks(make_net, frozen_stages):
    net = make_net(TINY_T2T, paradigm=ALL, frozen_stages=frozen_stages).train()
    frozen = ('tokens_to_token.', 'cls_token') if frozen_stages >= 0 else ()
    frozen += tuple(f'encoder.{i}.' for i in range(max(frozen_stages, 0)))
    frozen += ('norm.',) if frozen_stages == 3 else ()
    for name, parameter in net.named_parameters():
        expected = 'masker' in name or not name.startswith(frozen or ('nothing',))
        assert parameter.requires_grad == expected, name
    assert [b.training for b in net.encoder] == [i >= frozen_stages for i in range(3)]
    net(torch.rand(2, 3, 64, 64))[0].sum().backward()
    net.load_state_dict(net.state_dict())
    assert frozen_stages < 1 or net.train().maskers_are_frozen()


def test_state_dict_round_trip_and_copies(make_net):
    net, x = make_net(TINY_T2T, paradigm=ALL).train(), torch.rand(2, 3, 64, 64)
    net(x)
    other = make_net(TINY_T2T, paradigm=ALL)
    other.load_state_dict(net.state_dict())
    net.eval()
    with torch.no_grad(), force_rate(net, 0.5), force_rate(other, 0.5):
        expected = net(x)[-1]
        assert torch.equal(other(x)[-1], expected)
        for clone in (copy.deepcopy(other), pickle.loads(pickle.dumps(make_net(TINY_T2T)))):
            clone.load_state_dict(net.state_dict(), strict=False)
            assert clone.pos_embed.data_ptr() != net.pos_embed.data_ptr()
    assert 'tokens_to_token.attention1.w' in net.state_dict()
    assert 'tokens_to_token.attention1.w' not in dict(net.named_parameters())


def test_skipping_leaves_inputs_and_returned_tokens_alone(make_net):
    net = make_net(TINY_T2T, paradigm=ALL, out_indices=(0, 1, -1), out_type='raw')
    x = torch.rand(2, 3, 64, 64)
    before = x.clone()
    with torch.no_grad(), force_rate(net, 0.5):
        first = net(x)
        kept = [y.clone() for y in first]
        net(torch.rand(2, 3, 64, 64))
        net.execution = 'masked'
        masked = net(x)
    assert torch.equal(x, before)
    assert all(torch.equal(y, k) for y, k in zip(first, kept))
    for skipped, dense in zip(first, masked):
        torch.testing.assert_close(skipped, dense, rtol=1e-4, atol=1e-5)


def test_as_static_is_the_net_without_maskers(make_net):
    net, x = make_net(TINY_T2T, paradigm=ALL), torch.rand(2, 3, 64, 64)
    static = make_net(TINY_T2T, paradigm=None)
    static.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad(), net.as_static(), force_rate(net, 0.0):
        assert torch.equal(net(x)[0], static(x)[0])
    assert (net.record.cost().rates == 1).all()


@pytest.mark.parametrize('settings', [
    dict(), dict(t2t_type='transformer'), dict(in_channels=1, token_dim=8)], ids=str)
@pytest.mark.parametrize('size', [(64, 64), (75, 101), (33, 40)], ids=str)
def test_record_module_and_table_count_the_same_flops(make_net, settings, size):
    net = make_net(TINY_T2T, paradigm=ALL, **settings)
    config = dict(dict(type='laud_mm.LAUDT2TViT', arch=TINY_T2T, token_dim=16, paradigm=ALL),
                  **settings)
    spec = backbone_spec(config, size)
    assert net.op_specs(size) == spec
    with torch.no_grad(), force_rate(net, 1.0):
        net(torch.rand(2, settings.get('in_channels', 3), *size))
    cost = net.record.cost()
    assert cost.static_flops == spec.static_flops
    assert [b.in_size for b in net.record.blocks] == [b.in_size for b in spec.blocks]
    assert (cost.rates == 1).all()


def test_rates_count_the_class_token_heads_and_branches(make_net):
    net = make_net(TINY_T2T, paradigm=ALL)
    tokens = torch.zeros(2, 16, dtype=torch.bool)
    tokens[1, :8] = True
    decision = TransformerDecision(
        tokens=tokens, heads=torch.tensor([[True, False, False], [True, True, True]]),
        branches=torch.tensor([[True, False], [True, True]]))
    with torch.no_grad(), override_decisions(net, lambda *_: decision):
        net(torch.rand(2, 3, 64, 64))
    rates = net.record.blocks[1].rates()
    assert rates.token.tolist() == pytest.approx([1 / 17, 9 / 17])
    assert rates.head.tolist() == pytest.approx([1 / 3, 1])
    assert (rates.attn.tolist(), rates.mlp.tolist()) == ([1, 1], [0, 1])
    assert rates.unit.tolist() == pytest.approx([1 / 17 / 3 / 2, 9 / 17])
    block = net.record.cost().block_flops[1]
    qkv, mlp = 17 * 24 * 72, 17 * 24 * 40
    expected = (qkv + 17 * 24 * 24) / 3 / 17 + 2 * 17 * 17 * 24 / 3 / 17**2
    assert block[0].item() == pytest.approx(expected + 17 * 24 + 24 * 3 + 24 * 2, rel=1e-6)
    assert mlp < block[1] < qkv + 2 * mlp + 17 * 24 * 24 + 2 * 17 * 17 * 24


# Multiply-adds at 224x224 and, below, parameters of Yuan et al., "Tokens-to-Token ViT" (ICCV 2021):
# T2T-ViT with the Performer type, T2T-ViT-t with the transformer type.
@pytest.mark.parametrize('arch, t2t_type, published_gflops', [
    ('t2t_vit_14', 'performer', 4.8), ('t2t_vit_19', 'performer', 8.5),
    ('t2t_vit_24', 'performer', 13.8), ('t2t_vit_14', 'transformer', 6.1),
    ('t2t_vit_19', 'transformer', 9.8), ('t2t_vit_24', 'transformer', 15.0)])
def test_flops_are_the_published_ones(arch, t2t_type, published_gflops):
    spec = t2t_vit_spec(arch, t2t_type=t2t_type)
    assert spec.static_flops / 1e9 == pytest.approx(published_gflops, rel=0.02)


@pytest.mark.parametrize('arch, millions', [('t2t_vit_14', 21.5), ('t2t_vit_19', 39.2),
                                            ('t2t_vit_24', 64.1)])
def test_parameters_are_the_published_ones(arch, millions):
    net = LAUDT2TViT(arch, paradigm=None)
    classifier = net.norm.normalized_shape[0] * 1000 + 1000
    assert (sum(p.numel() for p in net.parameters()) + classifier) / 1e6 == pytest.approx(
        millions, rel=0.02)


@pytest.mark.parametrize('head', [dict(type='VisionTransformerClsHead'),
                                  dict(type='LinearClsHead')], ids=lambda h: h['type'])
def test_mmpretrain_classifiers_take_the_backbone(head):
    pytest.importorskip('mmpretrain')
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS as CLASSIFIERS
    from mmpretrain.structures import DataSample
    init_default_scope('mmpretrain')
    model = CLASSIFIERS.build(dict(
        type='ImageClassifier', head=dict(head, num_classes=5, in_channels=24),
        backbone=dict(type='laud_mm.LAUDT2TViT', arch=TINY_T2T, img_size=64, paradigm=ALL)))
    x = torch.randn(2, 3, 64, 64)
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    model.train()
    sum(model(x, samples, mode='loss').values()).backward()
    model.eval()
    with torch.no_grad():
        assert model(x, mode='tensor').shape == (2, 5)
    assert isinstance(MODELS.build(dict(type='laud_mm.LAUDT2TViT', arch=TINY_T2T)), LAUDT2TViT)


class TokenClassifier(ToyClassifier):
    """The toy classifier on a tiny LAUDT2TViT."""

    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = LAUDT2TViT(TINY_T2T, img_size=32, token_dim=8, out_type='featmap',
                                   **kwargs)
        self.head = nn.Linear(24, 4)


@pytest.mark.parametrize('paradigm', ['token', 'head', 'layer', ALL], ids=str)
def test_hooks_train_it_and_report_rates_and_latency(tmp_path, paradigm):
    loss = dict(type='laud_mm.AdaViTLoss', token_target=0.6)
    hooks = [ActivationHook(loss=loss, temperature=dict(type='fixed', end=5.0), interval=1),
             LatencyHook(devices=['V100'])]
    runner = make_runner(tmp_path, hooks, val_images=2,
                         model=TokenClassifier(paradigm=paradigm))
    runner.train()
    assert {s.temperature for m in runner.model.backbone.maskers() for s in m.children()} == {5}
    report = json.loads(next(tmp_path.rglob('val_iter_4.json')).read_text())
    assert [b['name'] for b in report['blocks']] == ['encoder.0', 'encoder.1', 'encoder.2']
    assert report['measured']['dynamic']['mean_ms'] > 0
    assert 0 < report['predicted']['V100']['ratio'] and report['flops_fraction'] <= 1.01
    scalars = next(tmp_path.rglob('scalars.json')).read_text()
    assert 'loss_activation' in scalars and 'activation_rate/encoder.2' in scalars
    assert next(tmp_path.rglob('val_iter_4.png')).stat().st_size > 1000


@pytest.mark.parametrize('paradigm', [None, 'token', 'head', 'layer', ALL], ids=str)
def test_pictures_show_its_blocks(make_net, tmp_path, paradigm):
    from laud_mm.visualization import save_detection_picture, unit_map
    net = make_net(TINY_T2T, paradigm=paradigm)
    with torch.no_grad(), force_rate(net, 0.5):
        net(torch.rand(2, 3, 64, 64))
    shapes = {None: (1, 1), 'token': (4, 4), 'head': (2, 2), 'layer': (2, 1), ALL: (4, 4)}
    picture = unit_map(net.record.blocks[1].decision, 1)
    assert picture.shape == shapes[paradigm]
    assert 0 <= np.nanmin(picture) <= np.nanmax(picture) <= 1
    assert np.isnan(picture).sum() == (paradigm == 'head')  # three heads in a square of four
    save_detection_picture(tmp_path / 'a.png', np.zeros((64, 64, 3), np.uint8), np.zeros((0, 4)),
                           [], [], net.record)
    assert (tmp_path / 'a.png').stat().st_size > 1000
