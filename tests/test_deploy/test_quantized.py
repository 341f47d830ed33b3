"""The quantised form of a network: near to the float one, the same on kernels and references."""
import pytest
import torch

from laud_mm import ops
from laud_mm.deploy import Scales, deploy, load_scales, measure_scales
from laud_mm.deploy.artefact import export_deployed
from laud_mm.deploy.quantized import weight_scales
from laud_mm.deploy.scales import BlockScales
from laud_mm.models.backbones import LAUDResNet

from ..conftest import randomize_norms
from ..test_export import build
from .nets import SIZES, images, run

NETS = [('LAUDResNet', paradigm) for paradigm in (None, 'layer', 'spatial', ('layer', 'spatial'))]
NETS += [('LAUDRegNet', paradigm) for paradigm in ('layer', 'spatial')]
CALIBRATION = [images(2, 64, 80, seed) for seed in range(3)]


def signal_to_noise(actual, expected):
    """Power of the expected values over that of the error, in dB."""
    return 10 * torch.log10(expected.square().mean() / (actual - expected).square().mean())


def quantized_pair(name, paradigm, **kwargs):
    net = build(name, paradigm)
    scales = measure_scales(net, CALIBRATION)
    return net, deploy(net, quantized=scales, with_decisions=True, **kwargs)


@pytest.mark.parametrize('name, paradigm', NETS)
def test_it_is_near_to_the_float_network(name, paradigm):
    net, quantized = quantized_pair(name, paradigm)
    kept, flipped = [], []
    for seed, size in enumerate(SIZES):
        x = images(*size, seed)
        (expected, masks), (found, own) = run(net, x), quantized(x)
        assert [(y.shape, y.dtype, y.stride()) for y in found] == [
            (y.shape, y.dtype, y.stride()) for y in expected]
        assert own.keys() == masks.keys()
        flipped += [(own[key] != masks[key]).float().mean() for key in masks]
        if all(torch.equal(own[key], masks[key]) for key in masks):
            kept += map(signal_to_noise, found, expected)
    assert not flipped or sum(flipped) / len(flipped) < 0.1
    assert kept and min(kept) > 15, kept


@pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')
@pytest.mark.parametrize('name, paradigm', NETS[1:3])
def test_kernels_and_references_give_the_same_integers(name, paradigm):
    net, quantized = quantized_pair(name, paradigm)
    x = images(3, 65, 34)
    y = quantized.start(x)
    with ops.use_references():
        same = quantized.start(x)
    assert torch.equal(y, same)
    for block in quantized.blocks():
        y, masks, _ = block(y.clone(memory_format=torch.channels_last))
        with ops.use_references():
            same, expected, _ = block(same.clone(memory_format=torch.channels_last))
        assert torch.equal(y, same) and y.dtype == torch.uint8 and y.float().std() > 0
        assert all(torch.equal(masks[key], expected[key]) for key in masks)


def test_integers_do_what_fake_quantised_modules_of_the_framework_do():
    """A static block against torch's own fake quantisation of its weights and maps."""
    net = build('LAUDResNet', None)
    scales = measure_scales(net, CALIBRATION)
    quantized = deploy(net, quantized=scales)
    block, own = quantized.blocks()[0], scales.blocks['layer1.0']
    x = quantized.start(images(2, 48, 56))

    def fake(y, scale):
        return torch.fake_quantize_per_tensor_affine(y, scale, 0, 0, 255)

    def conv(y, folded, stride=1):
        weight = torch.fake_quantize_per_channel_affine(
            folded.weight, weight_scales(folded.weight), torch.zeros(len(folded.weight)), 0,
            -127, 127)
        return torch.nn.functional.conv2d(y, weight, folded.bias, stride, weight.shape[-1] // 2)

    folded = next(iter(net.blocks())).fold(torch.float32)
    y = x * own.input
    identity = conv(y, folded.shortcut, 2)
    y = fake(torch.relu(conv(y, folded.conv1)), own.conv1)
    y = fake(torch.relu(conv(y, folded.conv2, 2)), own.conv2)
    expected = fake(torch.relu(conv(y, folded.conv3) + identity), own.output)
    steps = (block(x)[0] * own.output - expected).abs() / own.output
    assert steps.max() <= 2.01  # the shortcut is rounded on its own, and what lies half-way
    assert (steps < 0.01).float().mean() > 0.7


def test_skipped_units_keep_what_they_had():
    _, quantized = quantized_pair('LAUDResNet', 'layer')
    block = next(b for b in quantized.blocks() if not b.shape.downsample)
    x = torch.randint(0, 256, (4, block.shape.in_channels, 9, 9), dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last)
    masker = block.weights.masker['layer']
    masker.bias.fill_(-1e9)
    assert torch.equal(block(x.clone(memory_format=torch.channels_last))[0], x)
    masker.bias.fill_(1e9)
    assert not torch.equal(block(x.clone(memory_format=torch.channels_last))[0], x)


def test_one_exported_program_serves_all_sizes():
    _, quantized = quantized_pair('LAUDResNet', 'spatial')
    program = export_deployed(quantized, (64, 96)).module()
    for seed, size in enumerate(SIZES):
        (found, masks), (expected, own) = program(images(*size, seed)), quantized(
            images(*size, seed))
        assert all(map(torch.equal, found, expected))
        assert all(torch.equal(masks[key], own[key]) for key in own)


def test_scales_are_saved_and_tell_what_is_wrong(tmp_path):
    net = build('LAUDResNet', 'layer')
    scales = measure_scales(net, CALIBRATION)
    assert scales.images == 6
    scales.save(tmp_path / 'scales.json')
    assert load_scales(tmp_path / 'scales.json') == scales
    x = images(1, 48, 48)
    assert torch.equal(deploy(net, quantized=scales)(x)[0],
                       deploy(net, quantized=tmp_path / 'scales.json')(x)[0])

    for content in ('{}', 'no', '{"format": "laud_mm scales", "version": 2}'):
        (tmp_path / 'bad.json').write_text(content)
        with pytest.raises(ValueError, match='quantized must be scales or a file of Scales.save'):
            deploy(net, quantized=tmp_path / 'bad.json')
    with pytest.raises(ValueError, match='scales of every block of the net, got none of layer1.0'):
        deploy(net, quantized=Scales(1, {}, 0.1, 0))
    with pytest.raises(ValueError, match='paradigm must be layer, spatial or None to be quantised'):
        measure_scales(build('LAUDResNet', 'channel'), CALIBRATION)
    with pytest.raises(ValueError, match='scales need at least one image'):
        measure_scales(net, [])


def test_dead_channels_and_blocks_stay_finite():
    net = randomize_norms(LAUDResNet(50, base_channels=8, num_stages=1, strides=(1,),
                                     dilations=(1,), out_indices=(0,))).eval()
    with torch.no_grad():
        for conv in (net.layer1[0].conv1, net.layer1[1].conv2):
            conv.weight[:4] = 0
    quantized = deploy(net, quantized=measure_scales(net, CALIBRATION))
    x = images(2, 40, 40)
    with torch.no_grad():
        (expected,), (found,) = net(x), quantized(x)
    assert signal_to_noise(found, expected) > 15


@pytest.mark.parametrize('settings', [dict(deep_stem=True, avg_down=True), dict(style='caffe')],
                         ids=lambda s: '-'.join(s))
def test_variants_of_a_resnet_are_quantised_too(settings):
    net = randomize_norms(LAUDResNet(50, base_channels=8, num_stages=1, strides=(2,),
                                     dilations=(1,), out_indices=(0,), **settings)).eval()
    quantized = deploy(net, quantized=measure_scales(net, CALIBRATION))
    assert (quantized.quantized_stem is None) == ('deep_stem' in settings)
    x = images(2, 65, 40)
    with torch.no_grad():
        (expected,), (found,) = net(x), quantized(x)
    assert signal_to_noise(found, expected) > 15


def test_the_scale_of_what_passes_by_is_that_of_the_input():
    scales = measure_scales(build('LAUDResNet', 'layer'), CALIBRATION)
    assert all(isinstance(own, BlockScales) for own in scales.blocks.values())
    inputs = [own.input for own in scales.blocks.values()]
    outputs = [own.output for own in scales.blocks.values()]
    assert inputs[1:] == outputs[:-1]
