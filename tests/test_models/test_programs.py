"""A block runs exactly the steps of its program, at exactly the sizes that these say."""
import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from laud_mm import ops
from laud_mm.deploy import build, deploy
from laud_mm.latency.kernel_table import KERNEL_TABLE
from laud_mm.latency.step_model import NO_CONTEXT, step_features, step_terms
from laud_mm.models.backbones import LAUDBottleneck, LAUDResNet
from laud_mm.models.backbones.block import DynamicBlock
from laud_mm.models.backbones.laud_t2t_vit import TransformerBlock
from laud_mm.models.dynamic import (
    RUN_TABLE,
    BlockMasker,
    Execution,
    force_rate,
    replay,
    run_program,
)
from laud_mm.profiling.make_plan import OneRoute
from laud_mm.specs import (
    CHANNEL_MASKERS,
    STEP_KINDS,
    BottleneckShape,
    Case,
    TransformerShape,
    dynamic_flops,
)
from laud_mm.specs.steps import UNITS

from ..conftest import randomize_norms


def test_run_cost_and_time_know_the_same_kinds():
    assert set(RUN_TABLE) == set(KERNEL_TABLE) == set(STEP_KINDS)
    for kind, own in STEP_KINDS.items():
        assert set(own.sizes) <= set(UNITS), kind
        sizes = [[1.0] * len(own.sizes)]
        assert step_features(kind, sizes, [NO_CONTEXT], 2).shape == (1, len(step_terms(kind)))


# What each operation's arguments say about its sizes: read here, apart from any table.

def _listed(index, count):
    return index[:int(count)].long()


def _area(size, side):
    return math.prod(min(side, n) for n in size)


def _grid(size, side):
    return math.prod(-(-n // side) for n in size)


def _picked(channel_count, group_size):
    return channel_count.float().mean().item() * group_size


def read_patch_mask(x, weight, bias, window):
    units = _grid(x.shape[2:], window)
    whole = (len(x), math.prod(x.shape[2:]), x.shape[1])
    return [('layer_masker', whole), ('spatial_masker', (*whole, units))]


def read_position_means(x):
    return [('channel_masker', (len(x), math.prod(x.shape[2:]))),
            ('excite', (len(x), math.prod(x.shape[2:]), x.shape[1]))]


def read_masker_conv1x1(x, weight, bias, mask_weight, mask_bias, window, packed=None):
    rows = len(x) * math.prod(x.shape[2:])
    return [('masker_conv1x1', (rows, x.shape[1], len(weight),
                                len(x) * _grid(x.shape[2:], window)))]


def read_compact(mask):
    return [('list_patches', (mask.numel(),)), ('list_channels', tuple(mask.shape))]


def read_halo_positions(index, count, samples, height, width, side, stride=1, dilation=1):
    rows = int(ops.halo_positions.reference(index, count, samples, height, width, side, stride,
                                            dilation)[1])
    return [('halo_positions', (rows, samples * height * width))]


def read_conv1x1_positions(x, index, count, weight, bias, stride=1, relu=True, channel_index=None,
                           channel_count=None, group_size=1, packed=None, granularity=1):
    area = math.prod((n - 1) // stride + 1 for n in x.shape[2:])
    rows, samples = len(x) * area, len(x)
    if index is not None:
        size = tuple((n - 1) // stride + 1 for n in x.shape[2:])
        flat, inside = ops.patch_positions(index, count, size, granularity)
        rows, samples = int(inside.sum()), len((flat[inside] // area).unique())
    if channel_index is None:
        return [('rows1x1', (rows, x.shape[1], len(weight)))]
    return [('picked1x1', (rows, x.shape[1], _picked(channel_count, group_size), samples))]


def read_conv1x1_shortcut(x, active, weight, bias, stride, granularity, sums):
    (kind, sizes), = read_conv1x1_positions(x, None, None, weight, bias, stride)
    return [('shortcut1x1', sizes)]


def read_conv3x3_patches(y, index, count, weight, bias, side, stride=1, dilation=1, groups=1,
                         channel_index=None, channel_count=None, group_size=1, packed=None,
                         winograd=False, shifts=None):
    size = tuple((n - 1) // stride + 1 for n in y.shape[2:])
    rows = int(count) * _area(size, side)
    if channel_index is not None:
        samples = len((_listed(index, count) // _grid(size, side)).unique())
        active = _picked(channel_count, group_size)
        if groups > 1:
            return [('picked3x3_grouped', (rows, active, weight.shape[1], samples))]
        return [('picked3x3', (rows, active, active, samples))]
    if winograd:
        tiles = math.prod(-(-min(side, n) // 2) for n in size)
        return [('rows3x3_winograd', (4 * int(count) * tiles, weight.shape[1], len(weight)))]
    if groups > 1:
        return [('rows3x3_grouped', (rows, y.shape[1], weight.shape[1]))]
    kinds = [('rows3x3', (rows, weight.shape[1], len(weight)))]
    # One convolution group may be left of several.
    return [*kinds, ('rows3x3_grouped', (rows, y.shape[1], weight.shape[1]))]


def read_conv1x1_add_patches_(out, identity, rows, index, count, weight, bias, side,
                              channel_index=None, channel_count=None, group_size=1, packed=None,
                              shifts=None, pieces=None):
    listed = int(count) * _area(out.shape[2:], side)
    if channel_index is None:
        return [('rows1x1_add', (listed, weight.shape[1], len(weight)))]
    samples = len((_listed(index, count) // _grid(out.shape[2:], side)).unique())
    return [('picked1x1_add', (listed, _picked(channel_count, group_size), len(weight), samples))]


def read_excite_patches_(rows, index, count, height, width, side, weight1, bias1, weight2, bias2,
                         channel_index=None, channel_count=None, group_size=1):
    grid = _grid((height, width), side)
    samples = len((_listed(index, count) // grid).unique())
    inside = int(count) / (max(samples, 1) * grid) * height * width
    if channel_index is not None:
        active = _picked(channel_count, group_size)
        return [('picked_excite', (inside, active, len(weight1), samples))]
    return [('excite_rows', (inside, weight1.shape[1], len(weight1), samples))]


def read_average_pool(x, side):
    return [('avgpool', (len(x) * _grid(x.shape[2:], side), x.shape[1]))]


def read_gather_tokens(x, index):
    return [('gather_tokens', (len(index), x.shape[2]))]


def read_scatter_add_tokens_(out, index, rows):
    return [('scatter_tokens', tuple(rows.shape))]


def read_patchify(x, weight, bias, packed=None):
    side = weight.shape[2]
    rows = len(x) * math.prod(n // side for n in x.shape[2:])
    return [('patchify', (rows, side**2 * x.shape[1], len(weight)))]


def read_depthwise_norm_patches(x, index, count, taps, bias, side, eps):
    return [('depthwise_norm_rows', (int(count) * _area(x.shape[2:], side), x.shape[1]))]


def read_mlp_add_patches_(out, identity, rows, index, count, weight1, bias1, weight2, bias2, side,
                          packed1=None, packed2=None):
    return [('mlp_rows_add', (int(count) * _area(out.shape[2:], side), out.shape[1],
                              len(weight1)))]


def read_convolution(x, weight, bias, stride, *_):
    n, (height, width), taps = len(x), x.shape[2:], weight.shape[2]
    rows = n * math.prod((side - 1) // stride[0] + 1 for side in (height, width))
    return [(f'conv{taps}x{taps}', (rows, x.shape[1], len(weight), n * height * width)),
            ('conv3x3_grouped', (rows, x.shape[1], weight.shape[1], n * height * width)),
            ('depthwise_conv', (rows, len(weight))),
            ('channel_masker', ())]  # one kind has a convolution inside


class Recorder(TorchDispatchMode):
    """Notes every operation of ours, and every convolution, with what it may be.

    Args:
        references (bool): Whether references compute, which know what only GPUs' kernels do.
    """

    def __init__(self, references=False):
        super().__init__()
        self.seen, self.references = [], references

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name.startswith('laud_mm::rectify_'):
            pass  # not every step of ReLU is an operation of ours
        elif name.startswith('laud_mm::') and 'pack' not in name:
            self.seen.append(globals()[f'read_{name.removeprefix("laud_mm::").split(".")[0]}'](
                *args, **(kwargs or {})))
        elif name.startswith('aten::convolution'):
            self.seen.append(read_convolution(*args))
        if self.references and name.startswith('laud_mm::'):
            reference = ops.OPERATIONS[name.removeprefix('laud_mm::').split('.')[0]].reference
            return reference(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


RECORDED = {kind for kind, own in STEP_KINDS.items() if own.calls or kind.startswith('conv')}


def run_recorded(block, x, decision, route, owned=False, references=False):
    """The operations that really ran, and the steps that the program says."""
    ran = []

    def run_step(step, run):
        RUN_TABLE[step.kind](run, step)
        ran.append(step.kind)
    execution = Execution('auto', OneRoute(route), override=lambda *_: decision,
                          clock=SimpleNamespace(run=run_step))
    case = block.case(x, owned)
    program = case.shape.program(case, route)
    expected = program.calls(block.exact_work(case, route, decision))
    with Recorder(references) as recorder:
        run_program(block, x.clone(), execution, block.weights()[0], owned)
    assert ran == [call.kind for call in expected]
    return recorder.seen, [call for call in expected if call.kind in RECORDED]


def assert_same(seen, expected):
    found = [max(own, key=lambda known: _agree(known, call)) for own, call in zip(seen, expected)]
    for (kind, sizes), call in zip(found, expected):
        assert kind == call.kind, f'{kind} ran where {call.name} is {call.kind}'
        assert list(sizes) == pytest.approx(call.sizes[:len(sizes)], rel=1e-5), call
    assert len(seen) == len(expected), [call.kind for call in expected]


def _agree(known, call):
    kind, sizes = known
    return kind == call.kind, sizes == pytest.approx(call.sizes[:len(sizes)], rel=1e-5)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_bottleneck_runs_its_program(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    groups, se_channels = draw(1, 1, 2, 3), draw(0, 0, 5)
    paradigms = tuple(p for p in ('layer', 'spatial', 'channel') if data.draw(st.booleans(), p))
    shape = BottleneckShape(
        'block', 0, in_channels=draw(16, 32), width=12, out_channels=32, stride=draw(1, 2),
        dilation=draw(1, 2), stride_in_conv1=draw(True, False), groups=groups,
        se_channels=se_channels, downsample=True, avg_down=draw(False, True),
        paradigms=paradigms or ('layer',),
        spatial_granularity=data.draw(st.integers(1, 9)), channel_granularity=draw(1, 2, 3, 4),
        channel_masker=draw(*(m for m in CHANNEL_MASKERS if m != 'conv_linear')),
        mask_before_norm=groups == 1 and not se_channels and draw(True, False))
    dtype = draw(torch.float32, torch.float64, torch.bfloat16)
    block = randomize_norms(LAUDBottleneck(shape, norm_cfg=dict(type='BN'))).to(dtype).eval()
    n, h, w = (data.draw(st.integers(1, high)) for high in (4, 24, 24))
    x, rate = torch.randn(n, shape.in_channels, h, w, dtype=dtype), draw(0.0, 0.3, 0.7, 1.0)
    with torch.no_grad():
        decision = block.masker(x).map(lambda mask: torch.rand(mask.shape) < rate)
        case = block.case(x)
        route = draw(*case.shape.routes(case))
        assert_same(*run_recorded(block, x, decision, route, draw(True, False)))
        with ops.use_references():  # plain functions: the steps are the same, nothing to record
            case = block.case(x)
            run_recorded(block, x, decision, draw(*case.shape.routes(case)))


@contextmanager
def as_on_a_gpu():
    """Blocks choose a GPU's programs, and the CPU runs them, by references."""
    own = DynamicBlock.case

    def on_a_gpu(case):
        return replace(case, device='cuda', kernels=True, dot_products=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DynamicBlock, 'case', lambda *args: on_a_gpu(own(*args)))
        patch.setattr(build, 'Case', lambda *args: on_a_gpu(Case(*args)))
        yield


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_bottleneck_runs_the_program_of_a_gpu(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    paradigms = draw(('layer',), ('layer', 'channel'), ('spatial',), ('layer', 'spatial'))
    shape = BottleneckShape(
        'block', 0, 32, 16, 32, stride=draw(1, 2), dilation=draw(1, 2),
        stride_in_conv1=draw(True, False), downsample=True, paradigms=paradigms,
        channel_granularity=draw(2, 8), spatial_granularity=draw(1, 2, 4))
    block = randomize_norms(LAUDBottleneck(shape, norm_cfg=dict(type='BN'))).double().eval()
    n, h, w = (data.draw(st.integers(1, high)) for high in (4, 24, 24))
    x, rate = torch.randn(n, 32, h, w, dtype=torch.float64), draw(0.0, 0.3, 0.7, 1.0)
    with torch.no_grad(), as_on_a_gpu():
        decision = block.masker(x).map(lambda mask: torch.rand(mask.shape) < rate)
        case = block.case(x)
        program = case.shape.program(case)
        kinds = {step.kind for step in program.computing}
        listed = 'spatial' in paradigms and not program.route.fused_masker
        assert ('halo_positions' in kinds) == listed
        assert ('relu' in kinds) == (program.route.channels == 'sliced')
        assert_same(*run_recorded(block, x, decision, program.route, draw(True, False), True))
        own = Execution('skipping', override=lambda *_: decision)
        with ops.use_references():
            y, _, sums = run_program(block, x.clone(), own, block.weights()[0])
        masked = block.run_masked(x, decision)
    assert (y - masked).abs().max() <= 1e-9 * masked.abs().max()
    assert (sums is not None) == (paradigms == ('layer',))


def recorded_masks(patch):
    """Notes whether each masker of layers knows the sums of its input, and checks these."""
    known, decide = [], RUN_TABLE['layer_masker']

    def run_masker(run, step):
        knows = run.sums is not None
        decide(run, step)
        known.append(knows)
        weight, bias = run.weights.maskers['layer']
        read = ops.patch_mask(run.x, weight, bias, ops.WHOLE)
        assert torch.equal(run.masks['layer'], read.flatten(1))
        if knows:
            exact = run.x.double().sum((2, 3))
            assert torch.allclose(run.sums.sums.double(), exact, rtol=1e-4, atol=1e-3)
    patch.setitem(RUN_TABLE, 'layer_masker', run_masker)
    return known


@pytest.mark.parametrize('deployed', [False, True])
def test_maskers_of_a_gpu_read_no_map_but_the_first(deployed, monkeypatch):
    net = randomize_norms(LAUDResNet(50, paradigm='layer', base_channels=8)).eval()
    x, more = torch.randn(5, 3, 40, 48), torch.randn(5, 3, 40, 48)
    known = recorded_masks(monkeypatch)
    with torch.no_grad(), as_on_a_gpu(), ops.use_references():
        with force_rate(net, 0.5):
            net(x)
        decisions = net.record.decisions
        for masker in net.maskers():  # decides by the image, about half of the time
            masker.layer.conv.bias.zero_()
        run = deploy(net, image_size=(40, 48), batch=5) if deployed else net
        for image in (x, more):
            known.clear()
            with nullcontext() if deployed else replay(net, decisions):
                outputs = run(image)
            assert known == [False] + [True] * (len(net.blocks()) - 1)
            with net.executing(mode='masked'), nullcontext() if deployed else replay(
                    net, decisions):
                for y, expected in zip(outputs, net(image)):
                    assert (y - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_sums_of_a_map_that_a_hook_changes_in_place_are_forgotten(monkeypatch):
    net = randomize_norms(LAUDResNet(50, paradigm='layer', base_channels=8)).eval()
    known = recorded_masks(monkeypatch)
    net.layer2.register_forward_hook(lambda module, args, y: y.mul_(3))
    with torch.no_grad(), as_on_a_gpu(), ops.use_references():
        net(torch.randn(3, 3, 40, 48))
    first = len(net.layer1) + len(net.layer2)
    assert [i for i, knows in enumerate(known) if not knows] == [0, first]


@pytest.mark.parametrize('groups, granularity, expected', [
    (1, 2, 0.0), (1, 4, 0.0), (1, 8, 1.0), (1, 16, 1.0), (2, 8, 0.0)])
def test_a_gpu_picks_channels_in_whole_chunks_only(groups, granularity, expected):
    shape = BottleneckShape('block', 0, 32, 16, 32, groups=groups, paradigms=('channel',),
                            channel_granularity=granularity)
    for kernels in (True, False):
        program = shape.program(Case(shape, (8, 8), 2, 'cuda', kernels))
        assert program.break_even == (expected if kernels else 0.0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_transformer_block_runs_its_program(data):
    paradigms = tuple(p for p in ('token', 'head', 'layer') if data.draw(st.booleans(), p))
    heads = data.draw(st.integers(1, 4))
    shape = TransformerShape('encoder.1', 0, heads * 4, heads, 20, paradigms or ('head',))
    block = randomize_norms(TransformerBlock(shape)).eval()
    n, tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 30))
    x, rate = torch.randn(n, tokens, heads * 4), data.draw(st.sampled_from((0.0, 0.4, 0.8, 1.0)))
    with torch.no_grad():
        decision, _ = block.decide(x)
        decision = decision.map(lambda mask: torch.rand(mask.shape) < rate)
        case = block.case(x)
        assert_same(*run_recorded(block, x, decision,
                                  data.draw(st.sampled_from(case.shape.routes(case))),
                                  data.draw(st.booleans())))


def test_a_table_that_is_wrong_is_noticed(monkeypatch):
    shape = BottleneckShape('block', 0, 256, 64, 256, paradigms=('spatial',),
                            spatial_granularity=4)
    block = randomize_norms(LAUDBottleneck(shape, norm_cfg=dict(type='BN'))).eval()
    x = torch.randn(2, 256, 16, 16)

    def check():
        with torch.no_grad():
            decision = block.masker(x).map(lambda mask: torch.rand(mask.shape) < 0.5)
            case = block.case(x)
            assert_same(*run_recorded(block, x, decision, case.shape.routes(case)[0]))
    check()
    own = STEP_KINDS['rows1x1_add']
    wrong = type(own)(own.sizes, lambda s, w: (w.patches, *own.measure(s, w)[1:]),
                      own.variant, own.calls)
    with monkeypatch.context() as patch:
        patch.setitem(STEP_KINDS, 'rows1x1_add', wrong)
        with pytest.raises(AssertionError):
            check()
    with monkeypatch.context() as patch:
        patch.setitem(RUN_TABLE, 'halo_positions', lambda run, step: None)
        with pytest.raises(AssertionError):
            check()
    check()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_programs_multiply_what_the_op_specs_count(data):
    """Where a route computes nothing else, its convolutions are the FLOPs of the decision."""
    def draw(*values):
        return data.draw(st.sampled_from(values))

    paradigm = draw('layer', 'spatial', 'channel')
    side = draw(2, 4)
    shape = BottleneckShape('block', 0, 32, 8, 32, stride=draw(1, 2), downsample=True,
                            paradigms=(paradigm,), spatial_granularity=side)
    block = LAUDBottleneck(shape, norm_cfg=dict(type='BN')).eval()
    x = torch.randn(3, 32, 16, 16)
    with torch.no_grad():
        decision = block.masker(x).map(lambda mask: torch.rand(mask.shape) < 0.5)
        case = block.case(x)
    route = case.shape.routes(case)[0]
    if route.winograd or route.fused_masker:
        route = type(route)('listed', channels=route.channels)
    calls = case.shape.program(case, route).calls(block.exact_work(case, route, decision))
    macs = sum(math.prod(call.sizes[:3]) * (9 if '3x3' in call.kind else 1) for call in calls
               if call.kind.startswith(('rows', 'picked')))
    specs = [op for op in shape.op_specs((16, 16)) if not op.dynamic]
    rates = decision.rates(shape, (16, 16))
    counted = (dynamic_flops(specs, rates) * torch.ones(3)).sum().item()
    if paradigm == 'channel':  # sizes hold means over the samples, FLOPs squares of each
        assert macs == pytest.approx(counted, rel=0.25)
    else:
        assert macs == pytest.approx(counted, rel=1e-5)


def test_a_gpu_finds_the_weights_of_maskers_in_float32():
    shape = BottleneckShape('block', 0, 32, 16, 32, paradigms=('layer', 'spatial', 'channel'))
    masker = BlockMasker(shape).half()
    for device, expected in (('cpu', torch.float16), ('meta', torch.float32)):
        found = masker.to(device).differences()
        assert {w.dtype for name, own in found.items() for w in own
                if name != 'channel'} == {expected}
        assert found['channel'][0].dtype == torch.float16
