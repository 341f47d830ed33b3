"""A deployed ConvNeXt."""
import pytest
import torch

from laud_mm import deploy, ops
from laud_mm.deploy import UnitProfile, measure_scales
from laud_mm.deploy.artefact import export_deployed
from laud_mm.deploy.onnx.backbone import onnx_model
from laud_mm.models.backbones import LAUDConvNeXt

from ..conftest import TINY_CONVNEXT, randomize_norms
from .nets import assert_equal, images

SIZES = (1, 64, 80), (3, 97, 66), (2, 96, 128)


def build(paradigm, means=False):
    net = randomize_norms(LAUDConvNeXt(
        TINY_CONVNEXT, paradigm=paradigm, out_indices=(0, 1, 2, 3), layer_scale_init_value=1.0,
        gap_before_final_norm=means)).eval()
    for masker in net.maskers():
        for own in masker.children():
            torch.nn.init.normal_(own.conv.weight)
            torch.nn.init.zeros_(own.conv.bias)
    return net


@pytest.mark.parametrize('means', [True, False])
@pytest.mark.parametrize('paradigm', ['layer', 'spatial', ('layer', 'spatial'), None])
def test_it_gives_what_the_skipping_network_gives(paradigm, means):
    net = build(paradigm, means)
    assert_equal(net, deploy(net, with_decisions=True), SIZES)


def test_it_computes_in_bfloat16():
    net = build(None)
    x, made = images(2, 64, 96), deploy(net, precision='bf16')
    assert made.computes_in == 'bfloat16'
    with torch.no_grad():
        for y, e in zip(made(x), net(x), strict=True):
            assert y.dtype == torch.float32
            assert (y - e).abs().max() <= 0.05 * e.abs().max()


def test_units_that_never_were_on_vanish_and_those_always_on_stay():
    net = build('layer')
    first, second = (f'features.3.{i}' for i in (0, 1))
    with torch.no_grad():
        for name, bias in ((first, -100.0), (second, 100.0)):
            net.get_submodule(name).masker.layer.conv.bias[0] = bias
    made = deploy(net, profile=UnitProfile.measure(net, [images(3, 64, 64)]))
    routes = {b.shape.name: b.program.route.compute for b in made.blocks()}
    assert (routes[first], routes[second]) == ('none', 'dense')
    x = images(2, 64, 96)
    with torch.no_grad():
        for y, e in zip(made(x), net(x)):
            torch.testing.assert_close(y, e, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')
def test_it_compiles_and_exports_as_one_graph_for_all_sizes():
    net = build('spatial')
    made = deploy(net)
    program = export_deployed(made, (64, 64)).module()
    torch._dynamo.reset()
    compiled = torch.compile(made, backend='eager', fullgraph=True, dynamic=True)
    for seed, size in enumerate(SIZES):
        x = images(*size, seed)
        with torch.no_grad():
            expected = net(x)
            for run in (program, compiled):
                for y, e in zip(run(x), expected, strict=True):
                    torch.testing.assert_close(y, e, rtol=1e-4, atol=1e-4)


def test_what_there_is_none_of_is_refused():
    made = deploy(build('layer'))
    with pytest.raises(ValueError, match='backbone must be a LAUDResNet, .* got LAUDConvNeXt'):
        onnx_model(made)
    with pytest.raises(ValueError, match='backbone must be a LAUDResNet .* quantised, got LAUD'):
        measure_scales(build('layer'), [images(2, 64, 64)])
