"""Specialised networks equal the unspecialised on the images of their profile."""
import json

import pytest
import torch

from laud_mm.deploy import UnitProfile, deploy, load_profile
from laud_mm.export import largest_difference
from laud_mm.specs.bottleneck import MASKS

from .nets import NETS, build, images, run

IMAGES = [images(2, 48, 56, 1), images(1, 64, 40, 2)]
DYNAMIC = [net for net in NETS if net.values[1] is not None]


def decided(name, paradigm, how):
    """A network whose first block decides the same for every image, and its last as it likes.

    Args:
        how (str): 'on', 'off'; or 'half': every other channel group is off, all else on.
    """
    net = build(name, paradigm)
    for block in net.blocks()[:-1]:
        for kind, masker in block.masker.named_children():
            layer = masker.fc2 if kind == 'channel' else masker.conv
            with torch.no_grad():
                layer.weight.zero_()
                on, off = layer.bias.chunk(2)
                on.fill_(-1 if how == 'off' else 1)
                off.fill_(0)
                if how == 'half' and kind == 'channel':
                    on[::2] = -1
    return net


def specialised(net, **kwargs):
    profile = UnitProfile.measure(net, IMAGES)
    return deploy(net, profile=profile, with_decisions=True, **kwargs)


@pytest.mark.parametrize('how', ['on', 'off', 'half'])
@pytest.mark.parametrize('name, paradigm', DYNAMIC)
def test_it_equals_the_network_on_the_profiles_images(name, paradigm, how):
    net = decided(name, paradigm, how)
    deployed = specialised(net)
    for x in IMAGES:
        expected, masks = run(net, x)
        outputs, own = deployed(x.clone())
        assert largest_difference(outputs, expected) < 1e-4
        for key, mask in own.items():
            kept = next(b.kept for b in deployed.blocks() if key.startswith(b.shape.name + '.'))
            wanted = masks[key] if kept is None or 'channels' not in key else \
                masks[key][:, list(kept)]
            assert torch.equal(mask, wanted)


@pytest.mark.parametrize('name, paradigm', DYNAMIC)
def test_what_is_always_on_has_no_masker_and_what_never_is_vanishes(name, paradigm):
    first = {how: specialised(decided(name, paradigm, how)).blocks()[0]
             for how in ('on', 'off', 'half')}
    kinds = {step.kind for how in ('on', 'off') for item in (
        *first[how].program.deciding, *first[how].program.computing)
        for step in getattr(item, 'steps', (item,))}
    assert not [kind for kind in kinds if 'mask' in kind or kind == 'halo_positions']
    assert first['on'].computes == 'dense'
    gone = paradigm != 'channel'
    assert (first['off'].computes == 'none') == gone
    assert set(dict(first['off'].weights.named_modules())) <= {'', 'shortcut', 'masker'} or not gone
    last = specialised(decided(name, paradigm, 'on')).blocks()[-1]
    assert last.shape.paradigms or last.fixed  # it decides, unless it happened to agree


def test_channels_that_never_are_on_are_left_out():
    whole = deploy(decided('LAUDResNet', 'channel', 'half')).blocks()[0]
    part = specialised(decided('LAUDResNet', 'channel', 'half')).blocks()[0]
    width = whole.shape.width
    assert part.shape.width == part.weights.conv2.weight.shape[0] == width // 2
    assert part.kept == tuple(range(1, whole.shape.channel_groups, 2))
    assert part.fixed == dict(channels=(0, 1) * (whole.shape.channel_groups // 2))


def test_other_units_stay_dynamic():
    net = build('LAUDResNet', 'channel')
    deployed = specialised(net)
    block = deployed.blocks()[0]
    assert block.shape.paradigms == ('channel',)
    other = images(4, 48, 56, 9)
    _, own = deployed(other)
    mask = own[f'{block.shape.name}.channels']
    assert 0 < mask.float().mean() < 1


def test_a_tolerance_lets_rare_units_go():
    net = build('LAUDResNet', 'layer')
    blocks = [block.shape.name for block in net.blocks()]
    profile = UnitProfile(10, {name: dict(layer=(rate,)) for name, rate in
                               zip(blocks, (0.1, 0.9, 0.5))})
    for tolerance, kinds in ((0, ['listed'] * 3), (0.1, ['none', 'dense', 'listed'])):
        deployed = deploy(net, profile=profile, tolerance=tolerance)
        assert [b.computes for b in deployed.blocks()] == kinds


@pytest.mark.parametrize('paradigm', ['layer', 'spatial', 'both'])
@pytest.mark.parametrize('rate, compute', [(1.0, 'dense'), (0.0, 'none'), (0.4, 'listed')])
def test_a_report_of_the_latency_hook_is_a_profile(paradigm, rate, compute, tmp_path):
    net = build('LAUDResNet', paradigm)
    names = [block.shape.name for block in net.blocks()]
    report = dict(images=5, blocks=[dict(name=name, rate=rate if name == names[0] else 0.5)
                                    for name in names])
    (tmp_path / 'report.json').write_text(json.dumps(report))
    block, *others = deploy(net, profile=tmp_path / 'report.json').blocks()
    if paradigm == 'both' and rate == 0:
        compute = 'listed'  # the report does not say which of both is off
    assert block.computes == compute
    assert all(other.computes == 'listed' for other in others)


def test_profiles_survive_saving(tmp_path):
    profile = UnitProfile.measure(build('LAUDRegNet', 'both'), IMAGES)
    profile.save(tmp_path / 'profile.json')
    assert load_profile(tmp_path / 'profile.json') == profile
    assert profile.images == 3


def test_outputs_of_earlier_stages_survive_blocks_that_vanish():
    net = decided('LAUDRegNet', 'layer', 'off')
    deployed = specialised(net)
    x = IMAGES[0]
    for y, expected in zip(deployed(x)[0], run(net, x)[0]):
        assert torch.allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize('content, message', [
    ('[]', 'profile must be a file'), ('{"images": 1}', "KeyError.'blocks'"),
    ('{"images": 1, "blocks": [{"name": "a", "rate": 2}]}', 'rates must be from 0 to 1, got 2'),
    ('{"format": "laud_mm profile", "version": 9}', 'version must be 1, got 9'),
    ('{"images": 1, "blocks": []}', 'profile must have every block of the net, got none of'),
    ('{"format": "laud_mm profile", "version": 1, "images": 1, "blocks": '
     '{"layer1.0": {"channels": [1]}}}', 'profile must have 4 channels of layer1.0, got 1')])
def test_bad_profiles_are_named(content, message, tmp_path):
    (tmp_path / 'profile.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        deploy(build('LAUDResNet', 'channel'), profile=tmp_path / 'profile.json')


def test_a_profile_needs_images_and_evaluation():
    net = build('LAUDResNet', 'layer')
    with pytest.raises(ValueError, match='at least one image'):
        UnitProfile.measure(net, [])
    with pytest.raises(ValueError, match='backbone must be in evaluation'):
        UnitProfile.measure(net.train(), IMAGES)
    assert set(MASKS.values()) == {'layer', 'patches', 'channels'}  # what profiles may hold
