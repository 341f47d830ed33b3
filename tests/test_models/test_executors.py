"""Skipping equals masked: the heart of the project."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm import ops
from laud_mm.models.backbones import LAUDBottleneck, LAUDRegNetBottleneck
from laud_mm.models.dynamic import force_rate, override_decisions, replay
from laud_mm.specs import BottleneckShape, bottleneck_program

from ..conftest import ARCHS, TINY_REGNET, randomize_norms, run_block

PARADIGMS = ('layer', 'channel', 'spatial', 'both')
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def both_executors(net, x, rate, seed=0):
    """Outputs of the skipping and the masked executor for the same decisions."""
    with torch.no_grad():
        net.execution = 'skipping'
        with force_rate(net, rate, seed):
            skipped = net(x)
        net.execution = 'masked'
        with replay(net, net.record.decisions):
            masked = net(x)
    return skipped, masked


def assert_close(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.shape == e.shape
        error, scale = (a - e).abs().max().item(), e.abs().max().item()
        assert error <= tolerance * scale, f'max error {error:.2e} of {scale:.2e}'


@pytest.mark.parametrize('dtype', TOLERANCE, ids=['float32', 'float64'])
@pytest.mark.parametrize('size', [(64, 64), (127, 201)], ids=['even', 'odd_hw'])
@pytest.mark.parametrize('paradigm', PARADIGMS)
@pytest.mark.parametrize('arch', [50, 101, TINY_REGNET], ids=['resnet50', 'resnet101', 'regnet'])
def test_skipping_equals_masked(make_net, arch, paradigm, size, dtype):
    net = make_net(arch, paradigm=paradigm, dtype=dtype)
    x = torch.randn(3, 3, *size, dtype=dtype)
    assert_close(*both_executors(net, x, rate=0.5), TOLERANCE[dtype])


@pytest.mark.parametrize('rate', [0.0, 1.0], ids=['all_off', 'all_on'])
@pytest.mark.parametrize('arch, settings', [
    (50, dict()), (50, dict(mask_before_norm=True)), (TINY_REGNET, dict())],
    ids=['after_norm', 'before_norm', 'regnet'])
@pytest.mark.parametrize('paradigm', PARADIGMS)
def test_skipping_equals_masked_at_the_extremes(make_net, paradigm, arch, settings, rate):
    net = make_net(arch, paradigm=paradigm, dtype=torch.float64, **settings)
    x = torch.randn(2, 3, 70, 45, dtype=torch.float64)
    assert_close(*both_executors(net, x, rate), 1e-9)


@pytest.mark.parametrize('batch_size', range(1, 6))
@pytest.mark.parametrize('paradigm', PARADIGMS)
@ARCHS
def test_skipping_equals_masked_for_any_batch(make_net, arch, paradigm, batch_size):
    net = make_net(arch, paradigm=paradigm, dtype=torch.float64)
    x = torch.randn(batch_size, 3, 65, 96, dtype=torch.float64)
    assert_close(*both_executors(net, x, 0.6, seed=batch_size), 1e-9)


SETTINGS = [
    dict(spatial_granularity=(8, 4, 7, 1)), dict(spatial_granularity=1),
    dict(spatial_granularity=64), dict(channel_granularity=(1, 4, 8, 16)),
    dict(paradigm=('layer', 'channel', 'spatial', None))]
RESNET_SETTINGS = [
    dict(style='caffe'), dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    dict(mask_before_norm=True), dict(masker=dict(channel='linear')),
    dict(masker=dict(channel='conv_linear')), dict(num_stages=2, out_indices=(0, 1)),
    dict(norm_cfg=dict(type='SyncBN'))]
WITHOUT_SE = dict(TINY_REGNET, se_ratio=0)


@pytest.mark.parametrize('arch, settings', [
    *((50, s) for s in SETTINGS + RESNET_SETTINGS), *((TINY_REGNET, s) for s in SETTINGS),
    (WITHOUT_SE, {})], ids=str)
@pytest.mark.parametrize('paradigm', ['spatial', 'both'])
def test_skipping_equals_masked_for_every_setting(make_net, paradigm, arch, settings):
    net = make_net(arch, dtype=torch.float64, **dict(dict(paradigm=paradigm), **settings))
    x = torch.randn(2, 3, 75, 101, dtype=torch.float64)
    assert_close(*both_executors(net, x, 0.4), 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_block_skipping_equals_masked(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    groups, se_channels = draw(1, 1, 2, 3, 12), draw(0, 0, 5)
    shape = BottleneckShape(
        'block', 0, in_channels=draw(3, 32), width=12, out_channels=32, stride=draw(1, 2),
        dilation=draw(1, 2, 3), stride_in_conv1=draw(True, False), groups=groups,
        se_channels=se_channels, downsample=True, avg_down=draw(False, True),
        paradigms=draw(*PARADIGMS),
        spatial_granularity=data.draw(st.integers(1, 9)), channel_granularity=draw(1, 2, 3, 4),
        mask_before_norm=groups == 1 and not se_channels and draw(True, False))
    block = draw(LAUDBottleneck, LAUDRegNetBottleneck)(shape, norm_cfg=dict(type='BN'))
    block = randomize_norms(block).double().eval()
    n, h, w = (data.draw(st.integers(1, high)) for high in (4, 24, 24))
    x = torch.randn(n, shape.in_channels, h, w, dtype=torch.float64)

    rate = data.draw(st.floats(0, 1))
    def random_masks(_, decision):
        return decision.map(lambda mask: torch.rand(mask.shape) < rate)
    with torch.no_grad():
        skipped, decision = run_block(block, x, override=random_masks)
        masked, _ = run_block(block, x, True, lambda *_: decision)
    assert_close([skipped], [masked], 1e-9)


@pytest.mark.parametrize('paradigm', PARADIGMS)
@ARCHS
def test_maskers_decide_alike_in_both_executors(make_net, arch, paradigm):
    net = make_net(arch, paradigm=paradigm, dtype=torch.float64)
    for masker in net.maskers():
        for parameter in masker.parameters():
            torch.nn.init.normal_(parameter)
    x, outputs, rates = torch.randn(2, 3, 64, 96, dtype=torch.float64), [], []
    for net.execution in ('skipping', 'masked'):
        with torch.no_grad():
            outputs.append(net(x))
        rates.append(net.record.cost().rates)
    assert_close(*outputs, 1e-9)
    assert torch.equal(*rates)
    assert 0.05 < rates[0].mean() < 0.95


@pytest.mark.parametrize('paradigm', PARADIGMS)
@ARCHS
def test_skipping_computes_nothing_that_is_off(make_net, arch, paradigm, monkeypatch):
    """Multiply-adds of the convolutions that really ran follow the recorded FLOPs."""
    # A masker that runs within conv1 computes all of it.
    monkeypatch.setitem(bottleneck_program.PASS_MACS, 'cpu', 0)
    # A grouped convolution skips whole groups only.
    channel_granularity = 2 if arch == 50 else arch['group_widths']
    net = make_net(arch, paradigm=paradigm, spatial_granularity=(8, 4, 4, 2),
                   channel_granularity=channel_granularity)
    x = torch.randn(2, 3, 128, 128)

    def ran_flops(run):
        from torch.utils.flop_counter import FlopCounterMode
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), ops.use_references(), counter:
            run()
        return counter.get_total_flops() / 2

    with net.as_static():
        static = ran_flops(lambda: net(x))
    with force_rate(net, 0.25):
        ran = ran_flops(lambda: net(x))
    recorded = net.record.cost()
    assert static == pytest.approx(2 * recorded.static_flops, rel=0.01)
    assert ran == pytest.approx(recorded.flops.sum().item(), rel=0.05)
    assert ran < 0.7 * static  # a small net's stem weighs much


@pytest.mark.parametrize('paradigm', PARADIGMS)
@ARCHS
def test_gradients_through_skipping_equal_those_through_masked(make_net, arch, paradigm):
    net = make_net(arch, paradigm=paradigm, dtype=torch.float64)
    x, gradients, decisions = torch.randn(2, 3, 33, 40, dtype=torch.float64), [], None
    for net.execution in ('skipping', 'masked'):
        net.zero_grad()
        image = x.clone().requires_grad_()
        with force_rate(net, 0.5) if decisions is None else replay(net, decisions):
            sum((y**2).sum() for y in net(image)).backward()
        decisions = net.record.detach().decisions
        # Weights that nothing used get no gradient from one executor, zeros from the other.
        gradients.append([image.grad, *(
            torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in net.named_parameters() if '.masker.' not in name)])
    assert_close(*gradients, 1e-9)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
@pytest.mark.parametrize('paradigm', PARADIGMS)
@ARCHS
def test_autocast_skipping_is_close_to_float32(make_net, arch, paradigm, dtype):
    net = make_net(arch, paradigm=paradigm, execution='skipping')
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), force_rate(net, 0.5):
        full = net(x)
        with torch.autocast('cpu', dtype=dtype):
            half = net(x)
    assert half[0].dtype == dtype
    assert_close([y.float() for y in half], full, 0.1)


@ARCHS
def test_memory_format_and_layout_of_the_input_do_not_matter(make_net, arch):
    net, x = make_net(arch, paradigm='both'), torch.randn(2, 3, 60, 84)
    with torch.no_grad(), force_rate(net, 0.5):
        plain, last = net(x), net(x.contiguous(memory_format=torch.channels_last))
        strided = net(torch.randn(2, 3, 60, 168).copy_(x.repeat_interleave(2, 3))[..., ::2])
    assert_close(plain, last, 1e-6)
    assert_close(plain, strided, 1e-6)


@ARCHS
def test_skipping_leaves_inputs_and_returned_maps_alone(make_net, arch):
    net, x = make_net(arch, paradigm='layer'), torch.rand(2, 3, 64, 64)
    before = x.clone()
    with torch.no_grad(), force_rate(net, 0.5):
        first = net(x)
        kept = [y.clone() for y in first]
        net(torch.rand(2, 3, 64, 64))
    assert torch.equal(x, before)
    assert all(torch.equal(y, k) for y, k in zip(first, kept))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('paradigm', PARADIGMS)
@ARCHS
def test_skipping_equals_masked_on_cuda(make_net, arch, paradigm):
    net = make_net(arch, paradigm=paradigm, dtype=torch.float64).cuda()
    x = torch.randn(3, 3, 127, 201, dtype=torch.float64, device='cuda')
    assert_close(*both_executors(net, x, 0.5), 1e-9)


def test_override_sees_every_dynamic_block_once(make_net):
    net, seen = make_net(paradigm=('layer', None, 'spatial', 'channel')), []
    with torch.no_grad(), override_decisions(net, lambda name, d: seen.append(name) or d):
        net(torch.rand(1, 3, 64, 64))
    assert seen == [b.shape.name for b in net.blocks() if b.shape.stage != 1]
    before = len(seen)
    with torch.no_grad():
        net(torch.rand(1, 3, 64, 64))
    assert len(seen) == before


@ARCHS
def test_what_one_thread_asks_for_leaves_others_alone(make_net, arch):
    net, x = make_net(arch, paradigm='layer'), torch.randn(2, 3, 64, 64)
    with torch.no_grad(), ThreadPoolExecutor(1) as other:
        with force_rate(net, 0.0):
            nothing = net(x)[-1]
        with net.as_static():
            static = net(x)[-1]
        decided = net(x)[-1]

        def run():
            with torch.no_grad():
                return net(x)[-1]
        with net.as_static():
            assert torch.equal(other.submit(run).result(), decided)
            assert torch.equal(net(x)[-1], static)
        with force_rate(net, 0.0):
            assert torch.equal(other.submit(run).result(), decided)
            assert torch.equal(net(x)[-1], nothing)
    assert not torch.allclose(nothing, static)


def test_blocks_and_stages_are_modules_that_take_and_return_a_map(make_net):
    net, seen = make_net(paradigm='layer'), []
    handles = [module.register_forward_hook(lambda m, args, out: seen.append((m, out)))
               for module in (net.layer3, net.layer3[1])]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = net(x)
        assert [m for m, _ in seen] == [net.layer3[1], net.layer3]
        assert torch.equal(seen[1][1], outputs[2])
        alone = net.layer4(outputs[2].clone())
    torch.testing.assert_close(alone, outputs[3])
    for handle in handles:
        handle.remove()
