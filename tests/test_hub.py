"""torch.hub from this folder, and folders as the Hugging Face hub has them."""
import importlib.util
import json

import pytest
import torch

from laud_mm.specs import NETWORKS
from laud_mm.utils.stack import is_installed
from laud_mm.weights.published import PUBLISHED, published_urls

from .conftest import ROOT, TINY_T2T, randomize_norms

needs_hub = pytest.mark.skipif(not is_installed('huggingface_hub'),
                               reason='huggingface_hub is not installed')


def test_torch_hub_has_an_entry_point_per_network():
    spec = importlib.util.spec_from_file_location('hubconf', ROOT / 'hubconf.py')
    spec.loader.exec_module(hubconf := importlib.util.module_from_spec(spec))
    # As torch.hub lists them.
    found = {name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != '_'}
    assert found == {f'laud_{name.replace(".", "_")}' for name in NETWORKS}
    assert {'laud_resnet50', 'laud_regnety_1_6gf', 'laud_t2t_vit_14'} <= found
    assert 'paradigm (str' in hubconf.laud_resnet50.__doc__


def test_torch_hub_builds_a_backbone_that_runs():
    net = torch.hub.load(str(ROOT), 'laud_resnet50', source='local', paradigm='spatial',
                         base_channels=8).eval()
    with torch.no_grad():
        assert [y.shape[1] for y in net(torch.rand(1, 3, 64, 64))] == [32, 64, 128, 256]
    assert net.layer1[0].masker.spatial.conv.bias.tolist() == [5, 0]  # init_weights ran


def test_torch_hub_starts_from_published_weights(monkeypatch):
    asked = []
    monkeypatch.setattr('laud_mm.weights.pretrained.load_checkpoint', lambda url, *a, **k: (
        asked.append(url), static.state_dict())[1])
    static = torch.hub.load(str(ROOT), 'laud_regnety_400mf', source='local', paradigm=None)
    net = torch.hub.load(str(ROOT), 'laud_regnety_400mf', source='local', pretrained=True)
    assert asked == [published_urls('regnety_400mf')[1]]
    own = net.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in static.state_dict().items())


@pytest.mark.parametrize('network', PUBLISHED)
def test_published_weights_are_torchvisions(network):
    models = pytest.importorskip('torchvision.models')
    name = network.replace('regnety_', 'regnet_y_').replace('.', '_')
    assert tuple(weights.url for weights in models.get_model_weights(name)) \
        == published_urls(network)


def test_networks_without_published_weights_say_so():
    with pytest.raises(ValueError, match="network must be one of .*, got 't2t_vit_14'"):
        published_urls('t2t_vit_14')


CONFIGS = {
    'resnet': dict(type='laud_mm.LAUDResNet', depth=50, base_channels=8,
                   paradigm=('channel', 'spatial'), strides=(1, 2, 2, 2)),
    'per_stage': dict(type='LAUDResNet', depth=50, base_channels=8,
                      paradigm=[None, 'layer', 'spatial', 'channel']),
    't2t_vit': dict(type='laud_mm.LAUDT2TViT', arch=TINY_T2T, img_size=64, token_dim=16,
                    paradigm=('token', 'head'))}


@needs_hub
@pytest.mark.parametrize('config', CONFIGS.values(), ids=list(CONFIGS))
def test_a_folder_brings_back_the_network_and_its_weights(config, tmp_path):
    from laud_mm.hub import HubBackbone
    net = randomize_norms(HubBackbone(config)).eval()
    net.save_pretrained(tmp_path)
    assert {'config.json', 'model.safetensors'} <= {path.name for path in tmp_path.iterdir()}
    again = HubBackbone.from_pretrained(str(tmp_path)).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(net(x), again(x)):
            assert torch.equal(ours, theirs)
    shapes = [[block.shape for block in one.backbone.blocks()] for one in (net, again)]
    assert shapes[0] == shapes[1]


@needs_hub
def test_what_cannot_be_stored_or_trusted_is_refused(tmp_path):
    from laud_mm.hub import HubBackbone
    from laud_mm.models.backbones import LAUDResNet
    with pytest.raises(ValueError, match='backbone.type must be a name, .* got <class'):
        HubBackbone(dict(type=LAUDResNet, depth=50))
    net = HubBackbone(CONFIGS['resnet'])
    net.save_pretrained(tmp_path)
    assert 'init_cfg' not in json.loads((tmp_path / 'config.json').read_text())['backbone']
    (tmp_path / 'model.safetensors').unlink()
    torch.save(net.state_dict(), tmp_path / 'pytorch_model.bin')
    with pytest.raises(FileNotFoundError, match='model.safetensors'):
        HubBackbone.from_pretrained(str(tmp_path))
    from huggingface_hub import PyTorchModelHubMixin
    assert hasattr(PyTorchModelHubMixin, '_load_as_pickle')  # what a repository falls back to
    with pytest.raises(ValueError, match='weights must be in model.safetensors, found a pickle'):
        HubBackbone._load_as_pickle(net, 'pytorch_model.bin', 'cpu', True)
