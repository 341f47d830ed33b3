"""Skipping equals masked in transformer blocks."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from laud_mm import ops
from laud_mm.models.backbones.laud_t2t_vit import TransformerBlock
from laud_mm.models.dynamic import (
    Execution,
    TransformerDecision,
    force_rate,
    replay,
    run_program,
)
from laud_mm.profiling.make_plan import OneRoute
from laud_mm.specs import Case, TransformerShape

from ..conftest import TINY_T2T, randomize_norms, run_block
from .test_executors import TOLERANCE, assert_close, both_executors

ALL = ('token', 'head', 'layer')
PARADIGMS = pytest.mark.parametrize('paradigm', ['token', 'head', 'layer', ('token', 'head'),
                                                 ('token', 'layer'), ('head', 'layer'), ALL],
                                    ids=lambda p: p if isinstance(p, str) else '+'.join(p))


@pytest.mark.parametrize('dtype', TOLERANCE, ids=['float32', 'float64'])
@pytest.mark.parametrize('size', [(64, 64), (75, 101)], ids=['even', 'odd_hw'])
@pytest.mark.parametrize('settings', [{}, dict(t2t_type='transformer', qkv_bias=True)],
                         ids=['performer', 'transformer'])
@PARADIGMS
def test_skipping_equals_masked(make_net, paradigm, settings, size, dtype):
    net = make_net(TINY_T2T, paradigm=paradigm, dtype=dtype, out_type='raw', **settings)
    x = torch.randn(3, 3, *size, dtype=dtype)
    assert_close(*both_executors(net, x, rate=0.5), TOLERANCE[dtype])


@pytest.mark.parametrize('rate', [0.0, 1.0], ids=['all_off', 'all_on'])
@PARADIGMS
def test_skipping_equals_masked_at_the_extremes(make_net, paradigm, rate):
    net = make_net(TINY_T2T, paradigm=paradigm, dtype=torch.float64, out_type='raw')
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_close(*both_executors(net, x, rate), 1e-9)


@pytest.mark.parametrize('batch_size', range(1, 6))
@PARADIGMS
def test_skipping_equals_masked_for_any_batch(make_net, paradigm, batch_size):
    net = make_net(TINY_T2T, paradigm=paradigm, dtype=torch.float64, out_type='raw',
                   out_indices=(0, 1, 2))
    x = torch.randn(batch_size, 3, 64, 80, dtype=torch.float64)
    assert_close(*both_executors(net, x, 0.6, seed=batch_size), 1e-9)


def make_block(num_heads=3, head_dims=4, paradigms=ALL, **kwargs):
    shape = TransformerShape('encoder.1', 0, num_heads * head_dims, num_heads, 20, paradigms)
    return randomize_norms(TransformerBlock(shape, **kwargs)).double().eval()


def random_decision(block, samples, tokens, draw=torch.rand):
    shape, masks = block.shape, {}
    for paradigm, name, units in (('token', 'tokens', tokens - 1),
                                  ('head', 'heads', shape.num_heads), ('layer', 'branches', 2)):
        if paradigm in shape.paradigms:
            masks[name] = draw(samples, units)
    return TransformerDecision(**masks)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_one_block_skipping_equals_masked(data):
    paradigms = tuple(p for p in ALL if data.draw(st.booleans(), p))
    block = make_block(data.draw(st.integers(1, 5)), data.draw(st.sampled_from((1, 4, 7))),
                       paradigms, qkv_bias=data.draw(st.booleans()))
    if not paradigms:
        return
    samples, tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 30))
    rate = data.draw(st.floats(0, 1))
    decision = random_decision(block, samples, tokens, lambda *s: torch.rand(s) < rate)
    x = torch.randn(samples, tokens, block.shape.embed_dims, dtype=torch.float64)
    before = x.clone()
    with torch.no_grad():
        skipped, masked = (run_block(block, x, m, lambda *_: decision)[0]
                           for m in (False, True))
    assert_close([skipped], [masked], 1e-9)
    assert torch.equal(x, before)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_one_block_dense_and_masked_by_its_program_equals_masked(data):
    paradigms = tuple(p for p in ALL if data.draw(st.booleans(), p)) or ('token',)
    block = make_block(data.draw(st.integers(1, 5)), data.draw(st.sampled_from((1, 4, 7))),
                       paradigms)
    samples, tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 30))
    rate = data.draw(st.sampled_from((0.0, 0.5, 1.0)))
    decision = random_decision(block, samples, tokens, lambda *s: torch.rand(s) < rate)
    x = torch.randn(samples, tokens, block.shape.embed_dims, dtype=torch.float64)
    dense = OneRoute(block.shape.dense_route(block.shape.masks))
    with torch.no_grad():
        own = Execution(plan=dense, override=lambda *_: decision)
        y, *_ = run_program(block, x.clone(), own, None)
        masked, _ = run_block(block, x, True, lambda *_: decision)
    assert_close([y], [masked], 1e-9)


@pytest.mark.parametrize('device, gradients, expected', [
    ('cpu', False, 1.0), ('cuda', False, 0.0), ('cuda', True, 1.0)])
def test_on_a_gpu_a_transformer_block_is_dense_so_that_nothing_waits(device, gradients, expected):
    shape = TransformerShape('encoder.1', 0, 12, 3, 20, ALL)
    program = shape.program(Case(shape, (9, 1), 2, device, gradients=gradients))
    assert program.route.compute == 'listed' and program.break_even == expected


@PARADIGMS
def test_gradients_through_skipping_equal_those_through_masked(make_net, paradigm):
    net = make_net(TINY_T2T, paradigm=paradigm, dtype=torch.float64, out_type='raw')
    x, gradients, decisions = torch.randn(3, 3, 64, 64, dtype=torch.float64), [], None
    for net.execution in ('skipping', 'masked'):
        net.zero_grad()
        image = x.clone().requires_grad_()
        with force_rate(net, 0.5) if decisions is None else replay(net, decisions):
            (net(image)[0]**2).sum().backward()
        decisions = net.record.detach().decisions
        gradients.append([image.grad, *(
            torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in net.named_parameters() if '.masker.' not in name)])
    assert_close(*gradients, 1e-9)


@PARADIGMS
def test_maskers_decide_alike_in_both_executors(make_net, paradigm):
    net = make_net(TINY_T2T, paradigm=paradigm, dtype=torch.float64)
    for masker in net.maskers():
        for parameter in masker.parameters():
            torch.nn.init.normal_(parameter)
    x, outputs, rates = torch.randn(4, 3, 64, 96, dtype=torch.float64), [], []
    for net.execution in ('skipping', 'masked'):
        with torch.no_grad():
            outputs.append(net(x))
        rates.append(net.record.cost().rates)
    assert_close(*outputs, 1e-9)
    assert torch.equal(*rates)
    assert 0.05 < rates[0].mean() < 0.95


@PARADIGMS
def test_skipping_computes_nothing_that_is_off(make_net, paradigm):
    """Multiply-adds that really ran follow the recorded FLOPs."""
    arch = dict(embed_dims=96, num_layers=6, num_heads=6, feedforward_channels=288)
    net = make_net(arch, paradigm=paradigm, img_size=96)
    x = torch.randn(2, 3, 96, 96)

    def ran_flops(run):
        counter = FlopCounterMode(display=False)
        # The counter does not know fused attention on every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            run()
        return counter.get_total_flops() / 2

    with net.as_static():
        static = ran_flops(lambda: net(x))
    with force_rate(net, 0.25):
        ran = ran_flops(lambda: net(x))
    recorded = net.record.cost()
    assert static == pytest.approx(2 * recorded.static_flops, rel=1e-3)
    assert ran == pytest.approx(recorded.flops.sum().item(), rel=0.01)
    assert ran < 0.85 * static  # a small net's stem weighs much


def test_a_token_that_is_off_stays_as_it_is_and_is_not_attended_to():
    block = make_block(paradigms=('token',))
    x = torch.randn(1, 6, 12, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3] += 1
    decision = TransformerDecision(tokens=torch.tensor([[True, True, False, True, False]]))
    for masked in (True, False):
        with torch.no_grad():
            y, z = (run_block(block, i, masked, lambda *_: decision)[0] for i in (x, changed))
        assert torch.equal(y[:, [3, 5]], x[:, [3, 5]])
        others = [0, 1, 2, 4]
        assert torch.equal(y[:, others], z[:, others])
        assert (y[:, others] - x[:, others]).abs().amax(-1).min() > 0


def test_masks_with_gradients_give_the_same_output_and_learn_from_attention():
    block, x = make_block(), torch.randn(3, 8, 12, dtype=torch.float64) * 5
    decision = random_decision(block, 3, 8, lambda *s: torch.rand(s) < 0.5)
    plain, _ = run_block(block, x, True, lambda *_: decision)
    learning = decision.map(lambda mask: mask.double().requires_grad_())
    y, _ = run_block(block, x, True, lambda *_: learning)
    torch.testing.assert_close(y, plain, rtol=1e-12, atol=1e-12)
    y[:, 0].square().sum().backward()  # the class token, which patch tokens reach by attention
    runs = decision.branches[:, 0] & decision.heads.any(1)
    assert runs.any()
    assert (learning.tokens.grad[runs] != 0).all() and (learning.tokens.grad[~runs] == 0).all()


def test_a_head_that_is_off_reaches_neither_attention_nor_mlp():
    block = make_block(paradigms=('head',))
    x = torch.randn(1, 5, 12, dtype=torch.float64)
    decision = TransformerDecision(heads=torch.tensor([[True, False, True]]))
    with torch.no_grad():
        for masked in (True, False):
            before = run_block(block, x, masked, lambda *_: decision)[0]
            off = slice(4, 8)
            for part in block.attn.qkv.weight.view(3, 12, 12)[:, off]:
                part.normal_()
            block.attn.proj.weight[:, off].normal_()
            block.mlp.fc1.weight[:, off].normal_()
            assert torch.equal(run_block(block, x, masked, lambda *_: decision)[0], before)


def test_branches_that_are_off_leave_their_sample_alone():
    block = make_block(paradigms=('layer',))
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    branches = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    with torch.no_grad():
        y, _ = run_block(block, x, False, lambda *_: TransformerDecision(branches=branches))
        static, _ = run_block(block, x, static=True)
    assert torch.equal(y[0], x[0])
    assert len({round((y[i] - x[i]).abs().sum().item(), 6) for i in range(4)}) == 4
    torch.testing.assert_close(y[3], static[3])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
@PARADIGMS
def test_autocast_skipping_is_close_to_float32(make_net, paradigm, dtype):
    net = make_net(TINY_T2T, paradigm=paradigm, execution='skipping')
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), force_rate(net, 0.5):
        full = net(x)
        with torch.autocast('cpu', dtype=dtype):
            half = net(x)
    assert_close([y.float() for y in half], full, 0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@PARADIGMS
def test_skipping_equals_masked_on_cuda(make_net, paradigm):
    net = make_net(TINY_T2T, paradigm=paradigm, dtype=torch.float64, out_type='raw').cuda()
    x = torch.randn(3, 3, 75, 101, dtype=torch.float64, device='cuda')
    assert_close(*both_executors(net, x, 0.5), 1e-9)


@pytest.mark.parametrize('recording', [True, False])
def test_tokens_gather_and_scatter_back(recording):
    x = torch.randn(3, 5, 4)
    index, rows = torch.tensor([2, 7, 14]), torch.randn(3, 4, requires_grad=recording)
    assert torch.equal(ops.gather_tokens(x, index), x[[0, 1, 2], [2, 2, 4]])
    expected = x.clone()
    expected[[0, 1, 2], [2, 2, 4]] += rows.detach()
    out = ops.scatter_add_tokens_(x, index, rows)
    torch.testing.assert_close(out, expected)
    assert (out is x) != recording
