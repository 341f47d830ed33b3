"""LAUD networks in timm: what timm asks of its own models, of every registered one."""
import importlib.util

import pytest
import torch

from laud_mm.models.backbones import LAUDBackbone
from laud_mm.models.find import find_backbone
from laud_mm.utils.stack import is_installed
from laud_mm.weights.layout import add_classifier_prefixes

from .conftest import TINY_REGNET, TINY_T2T, randomize_norms

pytestmark = pytest.mark.skipif(not is_installed('timm'), reason='timm is not installed')
if importlib.util.find_spec('timm'):
    import timm
    from timm.models._manipulate import group_parameters

    import laud_mm.timm
    NAMES = sorted(laud_mm.timm.MODELS)
else:
    NAMES = ['laud_resnet50_layer']
# One network per family and each thing that it skips.
SMALLEST = [n for n in NAMES if n.startswith(('laud_resnet50', 'laud_regnety_004',
                                              'laud_t2t_vit_14'))]


def small(name, **kwargs):
    """A registered model at small width: arguments go to the backbone."""
    own = dict(base_channels=8) if 'resnet' in name else dict(arch=TINY_REGNET) \
        if 'regnet' in name else dict(arch=TINY_T2T, img_size=64, token_dim=16)
    return timm.create_model(name, **{**own, **kwargs})


@pytest.mark.parametrize('name', [pytest.param(name, marks=() if name in SMALLEST else (
    pytest.mark.slow,)) for name in NAMES])
def test_default_cfg_feature_info_and_head_are_what_the_model_is(name):
    with torch.device('meta'):
        model = timm.create_model(name, device='meta', dtype=torch.float32)
    weights, cfg = model.state_dict(), model.default_cfg
    assert cfg is model.pretrained_cfg and cfg['architecture'] == name
    assert all(tensor.is_meta and tensor.dtype != torch.float64 for tensor in weights.values())
    first = cfg['first_conv'] or ()
    for layer in (cfg['classifier'], *([first] if isinstance(first, str) else first)):
        assert f'{layer}.weight' in weights
    assert model.get_classifier().weight.shape == (1000, model.num_features)
    features = model.forward_features(torch.empty(1, 3, 224, 224, device='meta'))
    assert cfg['pool_size'] is None or features.shape[-2:] == cfg['pool_size']
    assert model.num_features in (features.shape[1], features.shape[-1])
    info = model.feature_info
    assert len(info) >= 3 and all(name in dict(model.named_modules()) for name in (
        level['module'] for level in info))
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    blocks = len(model.backbone.blocks())
    assert len(set(groups.values())) > 3 and max(groups.values()) <= blocks + 1
    assert set(group_parameters(model, model.group_matcher(coarse=True))) == set(
        range(model.backbone.num_stages + 2))


@pytest.mark.parametrize('name', SMALLEST)
def test_it_classifies_and_learns_and_every_weight_has_a_gradient(name):
    model = small(name, num_classes=7).train()
    x = torch.rand(2, 3, 64, 64)
    y = model(x)
    assert y.shape == (2, 7)
    y.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    model.eval()
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.equal(model.forward_head(features), model(x))
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert isinstance(find_backbone(model, 'this test'), LAUDBackbone)
    assert model.backbone.record.cost().fraction.shape == (2,)


@pytest.mark.parametrize('name', SMALLEST)
def test_features_are_the_intermediates_of_the_whole_model(name):
    torch.manual_seed(0)
    model = randomize_norms(small(name)).eval()
    x = torch.rand(1, 3, 64, 64)
    for indices in ((0, 2), (1,)):
        torch.manual_seed(0)
        net = small(name, features_only=True, out_indices=indices).eval()
        net.model.load_state_dict(model.state_dict(), strict=False)
        with torch.no_grad():
            last, whole = model.forward_intermediates(x)
            maps = net(x)
            assert torch.equal(last, model.forward_features(x))
        assert [y.shape[1] for y in maps] == net.feature_info.channels()
        assert [64 // y.shape[2] for y in maps] == net.feature_info.reduction()
        for ours, index in zip(maps, indices):
            torch.testing.assert_close(ours, whole[index], rtol=1e-5, atol=1e-5)


def test_stages_that_features_do_not_need_are_dropped():
    net = small('laud_regnety_004_layer', features_only=True, out_indices=(0, 1)).train()
    assert not any('block3' in name or 'head' in name for name, _ in net.named_parameters())
    sum(y.sum() for y in net(torch.rand(2, 3, 64, 64))).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]
    backbone = net.model.backbone
    assert len(backbone.op_specs((64, 64)).blocks) == len(backbone.blocks())


@pytest.mark.parametrize('name', ['laud_resnet50_spatial', 'laud_t2t_vit_14_all'])
def test_the_classifier_is_replaced_and_pooling_stays(name):
    pools = ('max', 'avg') if 'resnet' in name else ('avg', 'token')
    model = small(name, global_pool=pools[0]).double().eval()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(5)
        assert model.get_classifier().weight.dtype == torch.float64 and model.num_classes == 5
        assert torch.equal(model.forward_head(model.forward_features(x), True), pooled)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(3, pools[1])
        assert model(x).shape == (1, 3)
        assert not torch.equal(model.forward_head(model.forward_features(x), True), pooled)
        model.reset_classifier(0, '')
        assert torch.equal(model(x), model.forward_features(x))


@pytest.mark.parametrize('name', ['laud_resnet50_channel', 'laud_t2t_vit_14_layer'])
def test_grad_checkpointing_gives_the_same_gradients(name):
    settings = dict(masker=dict(noise=False)) if 'resnet' in name else dict(noise=False)
    model, gradients = small(name, **settings).double(), []
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for enable in (False, True):
        torch.manual_seed(0)  # of dropout
        model.set_grad_checkpointing(enable)
        model.train().zero_grad()
        model(x).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(block.with_cp for block in model.backbone.blocks())
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


def test_a_model_is_deployed_with_its_head():
    model = randomize_norms(small('laud_resnet50_spatial', num_classes=7)).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        deployed = laud_mm.deploy(model, image_size=(64, 64), batch=2)
        assert not isinstance(deployed.backbone, LAUDBackbone)
        torch.testing.assert_close(deployed(x), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('stride', [16, 8])
def test_a_resnet_dilates_for_a_smaller_stride(stride):
    net = small('laud_resnet50_layer', features_only=True, output_stride=stride)
    assert net.feature_info.reduction()[-1] == stride
    assert net.eval()(torch.rand(1, 3, 64, 64))[-1].shape[-1] == 64 // stride
    with pytest.raises(ValueError, match='output_stride must be 32 for LAUDRegNet, got 16'):
        small('laud_regnety_004', output_stride=16)


def test_what_no_model_takes_is_refused():
    with pytest.raises(TypeError, match='not_an_argument'):
        small('laud_resnet50_layer', not_an_argument=1)
    with pytest.raises(ValueError, match='output_fmt must be .*NCHW.*, got .NLC.'):
        small('laud_t2t_vit_14').forward_intermediates(torch.rand(1, 3, 64, 64), output_fmt='NLC')


@pytest.mark.parametrize('name', ['laud_resnet50_layer', 'laud_regnety_004_channel',
                                  'laud_t2t_vit_14_all'])
def test_static_weights_load_and_maskers_start_fresh_with_all_on(name, tmp_path):
    static = randomize_norms(small(name.rpartition('_')[0])).eval()
    plain = {key.removeprefix('backbone.').replace('head.fc.', 'fc.'): value
             for key, value in static.state_dict().items()}  # as torchvision has them
    torch.save(plain, tmp_path / 'static.pth')
    model = small(name, pretrained=True,
                  pretrained_cfg_overlay=dict(file=str(tmp_path / 'static.pth'))).eval()
    assert any('.masker.' in key for key in model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(y, static(x), rtol=1e-4, atol=1e-4)
    assert model.backbone.record.cost().mean_rate.item() == 1


def test_classifiers_trained_here_load_with_their_maskers(tmp_path):
    source = randomize_norms(small('laud_t2t_vit_14_token')).eval()
    theirs = {key.replace('head.fc.', 'head.layers.head.'): value
              for key, value in source.state_dict().items()}
    assert add_classifier_prefixes(theirs) == theirs  # keys of a trained classifier
    torch.save(dict(state_dict=theirs), tmp_path / 'epoch_1.pth')
    overlay = dict(file=str(tmp_path / 'epoch_1.pth'))
    model = small('laud_t2t_vit_14_token', pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(value, source.state_dict()[key])
               for key, value in model.state_dict().items())
    static = small('laud_t2t_vit_14', pretrained=True, pretrained_cfg_overlay=overlay)
    assert not any('.masker.' in key for key in static.state_dict())
