"""GraphedBackbone: one graph per kind of input, and the network as it is where there is none."""
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch

from laud_mm.deploy import GraphedBackbone
from laud_mm.latency import measure
from laud_mm.latency.cuda_graphs import graphed, record_pass, recording
from laud_mm.latency.measure import (
    MOST_COPIES,
    copies_for,
    measure_copies,
    measure_interleaved,
)


class FakeGraph:
    """What a CUDA graph does, as far as a caller sees: it writes into its own outputs."""
    made = 0

    def __init__(self, run, x):
        if x.shape[0] == 13:
            raise RuntimeError('operation not permitted when stream is capturing\nmore')
        type(self).made += 1
        self.x, self.outputs, self.run = x.clone(), run(x), run

    def __call__(self, x):
        self.x.copy_(x)
        self.outputs.copy_(self.run(self.x))
        return self.outputs


@pytest.fixture
def net():
    FakeGraph.made = 0
    return GraphedBackbone(torch.nn.Conv2d(3, 4, 1), most=2, capture=FakeGraph)


def images(n=1, side=4, dtype=torch.float32):
    return torch.randn(n, 3, side, side, dtype=dtype)


def test_a_kind_of_input_is_captured_once(net):
    first, second = images(), images()
    y = net(first)
    assert torch.equal(y, net.net(first))
    again = net(second)
    assert again is y and torch.equal(again, net.net(second)) and FakeGraph.made == 1
    assert not y.requires_grad


@pytest.mark.parametrize('other', [
    images(2), images(side=5), images().contiguous(memory_format=torch.channels_last)],
    ids=['batch', 'size', 'format'])
def test_another_kind_is_another_graph(net, other):
    for x in (images(), other, images(), other):
        assert torch.allclose(net(x), net.net(x))
    assert FakeGraph.made == len(net.graphs) == 2


def test_types_and_autocast_are_kinds_too(net):
    net(images())
    with torch.autocast('cpu', torch.bfloat16):
        assert net(images()).dtype == torch.bfloat16
    assert FakeGraph.made == 2
    net.clear()
    assert net.double()(images(dtype=torch.float64)).dtype == torch.float64


def test_the_graph_used_longest_ago_goes(net):
    one, two, three = images(1), images(2), images(3)
    for x in (one, two, one, three):
        net(x)
    assert [kind[0][0] for kind in net.graphs] == [1, 3] and FakeGraph.made == 3
    net(two)
    assert [kind[0][0] for kind in net.graphs] == [3, 2] and FakeGraph.made == 4


def test_weights_that_change_are_seen_after_clear_and_train(net):
    for forget in (net.clear, net.train, net.eval):
        net(images())
        forget()
        assert not net.graphs


def test_what_cannot_be_captured_runs_as_it_is_after_one_warning(net):
    net.most = 3
    with pytest.warns(UserWarning, match='kernel by kernel: operation not permitted') as caught:
        for x in (images(13), images(13), images(13, 5)):
            assert torch.equal(net(x), net.net(x))
    assert len(caught) == 1 and FakeGraph.made == 0
    net(images())
    assert FakeGraph.made == 1


class FakeDevice:
    """What `torch.cuda.graph` and the allocator do where a recording fails, by torch 2.11."""

    def __init__(self, patch, fails):
        self.fails, self.current, self.underway, self.pools = fails, 'own', [], {'pool'}
        for name, value in dict(
                graph=lambda graph, pool: self.recorded(pool), graph_pool_handle=lambda: 'pool',
                current_device=lambda: 0, current_stream=lambda: self.current,
                stream=self.on).items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, '_cuda_endAllocateToPool', self.end, raising=False)
        patch.setattr(torch._C, '_cuda_releasePool', lambda _, pool: self.pools.remove(pool),
                      raising=False)

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def recorded(self, pool):
        if self.fails == 'before':
            raise RuntimeError('before')
        before, self.current = self.current, 'recording'
        self.underway.append(pool)
        try:
            yield
        finally:
            if self.fails == 'within':  # cudaStreamEndCapture says so
                raise RuntimeError('operation failed due to a previous error during capture')
            self.end(0, pool)
            if self.fails == 'after':
                raise RuntimeError('after')
            self.current = before

    def end(self, device, pool):
        if pool not in self.underway:
            raise RuntimeError('endAllocatePool: not currently recording to mempool_id')
        self.underway.remove(pool)


@pytest.mark.parametrize('fails', ['', 'before', 'within', 'after'])
def test_a_recording_that_fails_leaves_stream_and_allocator_as_they_were(fails, monkeypatch):
    device = FakeDevice(monkeypatch, fails)
    with pytest.raises(RuntimeError) if fails else nullcontext(), recording(None):
        assert device.current == 'recording'
    assert device.current == 'own' and not device.underway
    # What ended is the graph's own, which gives it back.
    assert device.pools == (set() if fails == 'within' else {'pool'})


def test_on_a_cpu_the_network_runs_as_it_is_after_one_warning(make_net):
    net = make_net(paradigm='layer')
    own, x = GraphedBackbone(net), torch.randn(2, 3, 64, 64)
    with pytest.warns(UserWarning, match='images are on cpu') as caught, torch.no_grad():
        for _ in range(2):
            for y, expected in zip(own(x), net(x)):
                assert torch.equal(y, expected)
    assert len(caught) == 1


def test_what_is_timed_on_a_cpu_is_not_graphed(net):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert graphed(net, 'cpu') is net
        measure_interleaved(dict(net=lambda: graphed(net, 'cpu')(images())), 'cpu', 0, 1)
    assert isinstance(graphed(net, 'cuda'), GraphedBackbone)


@pytest.mark.parametrize('most', [0, -1, 1.5, True])
def test_how_many_graphs_are_kept_must_make_sense(most):
    with pytest.raises(ValueError, match='most must be a positive int, got'):
        GraphedBackbone(torch.nn.Identity(), most)


def test_a_recorded_pass_runs_on_what_it_loaded():
    x, seen = torch.zeros(3), []
    own = record_pass(lambda y: seen.append(y.clone()) or y.add_(1), x)
    own.load(torch.ones(3))
    assert own.replay().tolist() == [2.0] * 3 and seen[0].tolist() == [1.0] * 3
    assert x.tolist() == [0.0] * 3  # the input itself is left alone


@pytest.mark.parametrize('one_ms, copies', [(0.0, MOST_COPIES), (1e-4, MOST_COPIES), (0.04, 13),
                                            (0.3, 2), (0.5, 1), (7.0, 1)])
def test_short_programs_are_timed_many_at_a_time(one_ms, copies):
    assert copies_for(one_ms) == copies


@pytest.mark.parametrize('each_ms, copies', [(0.1, 5), (10.0, 1)])
def test_copies_are_timed_without_the_sweeps_between_them(each_ms, copies, monkeypatch):
    ran = []

    class Clock:  # sweeps take 3 ms together, whatever runs between them
        def __init__(self, device):
            pass

        def time_ms(self, fn):
            before = len(ran)
            fn()
            own = (len(ran) - before) * each_ms
            return own if len(ran) <= 4 else 3 + own
    monkeypatch.setattr(measure, 'Timer', Clock)
    stats, samples = measure_copies(dict(one=lambda: ran.append(1)), 'cpu', warmup=1, repeats=5)
    assert len(samples['one']) == stats['one'].repeats == 5
    assert stats['one'].p50_ms == pytest.approx(each_ms)
    assert len(ran) == 1 + 3 + 6 * copies  # once at first, three for how long, then the copies
