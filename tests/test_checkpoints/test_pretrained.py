"""From an ImageNet checkpoint to a detector's backbone: what fits loads, what does not is named."""
import pytest
import torch
from mmengine.model import PretrainedInit

from laud_mm.checkpoints import CheckpointError, load_pretrained
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet
from laud_mm.weights import load_state_dict, save_state_dict

from ..conftest import TINY_REGNET


def resnet(paradigm='layer', **kwargs):
    return LAUDResNet(50, base_channels=8, paradigm=paradigm, **kwargs)


@pytest.fixture
def classifier(tmp_path):
    """Write a classifier's checkpoint: a path, and the backbone in it."""
    def write(net, change=lambda weights: None):
        weights = {f'backbone.{k}': v for k, v in net.state_dict().items()}
        weights.update({'head.fc.weight': torch.rand(4, 256), 'head.fc.bias': torch.rand(4)})
        change(weights)
        torch.save(dict(state_dict=weights, meta=dict(epoch=1)), tmp_path / 'classifier.pth')
        return str(tmp_path / 'classifier.pth')
    return write


@pytest.fixture
def said(monkeypatch):
    """What was logged."""
    messages = []
    monkeypatch.setattr('laud_mm.weights.pretrained.print_log',
                        lambda message, **kwargs: messages.append(message))
    return messages


def start(path, prefix='backbone.', make=resnet, **kwargs):
    net = make(init_cfg=dict(type='Pretrained', checkpoint=path, prefix=prefix), **kwargs)
    net.init_weights()
    return net


@pytest.mark.parametrize('make', [
    resnet, lambda **kwargs: LAUDRegNet(TINY_REGNET, **kwargs)], ids=['resnet', 'regnet'])
def test_a_classifiers_backbone_and_its_maskers_load_whole(classifier, said, make):
    source = make()
    net = start(classifier(source), make=make, frozen_stages=1)
    own = net.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in source.state_dict().items())
    assert all(m.loaded for m in net.maskers()) and net.maskers_are_frozen()
    assert f'loaded {len(own)} of {len(own)}' in said[-1] and 'fresh' not in said[-1]


def test_absent_maskers_start_fresh_and_are_named(classifier, said):
    path = classifier(resnet(paradigm=None))
    net = start(path)
    assert not any(m.loaded for m in net.maskers())
    assert net.layer1[0].masker.layer.conv.bias.tolist() == [5, 0]
    assert 'start fresh (32):\n  layer1.0.masker.layer.conv.weight' in said[-1]


def test_what_is_not_the_backbones_is_left_aside_and_named(classifier, said):
    load_pretrained(resnet(paradigm=None), classifier(resnet()), 'backbone.')
    assert 'layer1.0.masker.layer.conv.weight' in said[-1].split('left aside')[1]


def test_every_missing_and_misshapen_weight_is_named_and_nothing_is_loaded(classifier):
    def change(weights):
        del weights['backbone.layer2.1.conv2.weight'], weights['backbone.bn1.running_mean']
        weights['backbone.layer3.0.conv1.weight'] = torch.zeros(3, 2)
    path, net = classifier(resnet(), change), resnet()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(net, path, 'backbone.')
    message = str(caught.value)
    assert ('missing from the checkpoint (2):\n  bn1.running_mean\n  layer2.1.conv2.weight'
            in message)
    assert 'layer3.0.conv1.weight: (3, 2), the backbone has (32, 64, 1, 1)' in message
    assert 'layer3.0.conv2' not in message
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_another_granularity_of_a_masker_is_named(classifier):
    path = classifier(resnet('channel', channel_granularity=2))
    with pytest.raises(CheckpointError, match=r'layer1.0.masker.channel.fc2.weight: \(8, 16\)'):
        start(path, paradigm='channel', channel_granularity=4)


def test_counters_of_norms_may_be_missing_as_in_old_checkpoints(classifier):
    def change(weights):
        for key in [k for k in weights if k.endswith('num_batches_tracked')]:
            del weights[key]
    start(classifier(resnet(), change))


@pytest.mark.parametrize('prefix, advice', [
    (None, "set prefix='backbone.'"), ('body.', "starts with the prefix 'body.'; they start with "
                                                'backbone, head')])
def test_a_wrong_prefix_is_explained(classifier, prefix, advice):
    with pytest.raises(CheckpointError, match=advice):
        start(classifier(resnet()), prefix)


def averaged(weights):
    return dict({f'module.{k}': v for k, v in weights.items()}, steps=torch.tensor(7))


def prefixed(prefix):
    return lambda weights: {prefix + k: v for k, v in weights.items()}


WRAPPINGS = dict(
    plain=dict, state_dict=lambda w: dict(state_dict=w, epoch=3), model=lambda w: dict(model=w),
    model_state_dict=lambda w: dict(model_state_dict=w), ema=lambda w: dict(state_dict_ema=w),
    average=averaged, ddp=prefixed('module.'), compiled=prefixed('_orig_mod.'),
    compiled_in_ddp=prefixed('module._orig_mod.'), ddp_in_compiled=prefixed('_orig_mod.module.'),
    fsdp=prefixed('_fsdp_wrapped_module.'), average_in_runner=lambda w: dict(ema=averaged(w)))


@pytest.mark.parametrize('wrap', WRAPPINGS.values(), ids=WRAPPINGS)
def test_both_readers_unwrap(tmp_path, wrap):
    source, path = resnet(), str(tmp_path / 'net.pth')
    torch.save(wrap(source.state_dict()), path)
    read, own = load_state_dict(path), start(path, None).state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(read[key], value) and torch.equal(own[key], value)


def test_safetensors_are_a_start(tmp_path):
    pytest.importorskip('safetensors')
    source, path = resnet(), str(tmp_path / 'net.safetensors')
    save_state_dict({f'backbone.{k}': v for k, v in source.state_dict().items()}, path)
    own = start(path).state_dict()
    assert all(torch.equal(own[k], v) for k, v in source.state_dict().items())


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit], ids=['string', 'class'])
def test_a_missing_stage_is_refused_however_the_type_is_given(classifier, kind):
    def lose_a_stage(weights):
        for key in [k for k in weights if '.layer3.' in k]:
            del weights[key]

    path = classifier(resnet(), lose_a_stage)
    net = resnet(init_cfg=dict(type=kind, checkpoint=path, prefix='backbone.'))
    with pytest.raises(CheckpointError, match='missing from the checkpoint.*\n.*layer3.0.conv1'):
        net.init_weights()
    net = resnet(init_cfg=[dict(type=kind, checkpoint=classifier(resnet()), prefix='backbone.')])
    net.init_weights()
    assert all(m.loaded for m in net.maskers())
