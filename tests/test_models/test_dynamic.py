"""Maskers, decisions and the activation record."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm.models.dynamic import (
    ActivationRecord,
    ChannelMasker,
    Decision,
    SpatialMasker,
    decision_rates,
    expand_patches,
    force_rate,
    gumbel_decide,
    halo,
)
from laud_mm.specs import BottleneckShape


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 2]))
def test_masker_grid_equals_the_patch_grid(height, width, granularity, stride):
    shape = BottleneckShape('b', 0, 4, 4, 16, stride=stride, paradigms='spatial',
                            spatial_granularity=granularity)
    mask = SpatialMasker(4, granularity * stride).eval()(torch.rand(2, 4, height, width))
    assert tuple(mask.shape[1:]) == shape.grid_size((height, width))
    out = shape.out_size((height, width))
    assert expand_patches(mask, out, granularity).shape == (2, *out)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2]), st.integers(1, 3),
       st.integers(0, 10**6))
def test_halo_is_where_the_active_windows_read(height, width, stride, dilation, seed):
    generator = torch.Generator().manual_seed(seed)
    size = (height, width)
    out = tuple(-(-n // stride) for n in size)
    positions = (torch.rand(1, *out, generator=generator) < 0.3).float()
    expected = torch.zeros(1, *size)
    for y, x in positions[0].nonzero().tolist():
        for dy in (-dilation, 0, dilation):
            for dx in (-dilation, 0, dilation):
                row, column = y * stride + dy, x * stride + dx
                if 0 <= row < height and 0 <= column < width:
                    expected[0, row, column] = 1
    assert torch.equal(halo(positions, size, stride, dilation), expected)


def test_partial_patches_count_their_real_positions():
    shape = BottleneckShape('b', 0, 4, 4, 16, paradigms='spatial', spatial_granularity=4)
    patches = torch.tensor([[[True, False]]])  # 4 of 5 columns
    rates = decision_rates(shape, (4, 5), Decision(patches=patches))
    assert rates.patch.item() == pytest.approx(4 / 5)
    assert rates.halo.item() == 1  # the fifth column is read too


def test_channel_pairs_of_grouped_convolutions_count_within_their_group():
    shape = BottleneckShape('b', 0, 4, 8, 16, groups=2, paradigms='channel', channel_granularity=2)
    channels = torch.tensor([[True, True, False, False], [True, False, True, False]])
    rates = decision_rates(shape, (4, 4), Decision(channels=channels))
    assert rates.channel.tolist() == [0.5, 0.5]
    assert rates.channel_pair.tolist() == [0.5, 0.25]


def test_channel_rate_squared_is_per_image():
    shape = BottleneckShape('b', 0, 4, 4, 16, paradigms='channel', channel_granularity=1)
    channels = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    pair = decision_rates(shape, (4, 4), Decision(channels=channels)).channel_pair
    assert pair.mean().item() == 0.5  # not 0.25, the square of the batch mean


def test_decisions_in_evaluation_compare_the_logits_without_noise():
    masker = SpatialMasker(3, 2).eval()
    x = torch.randn(2, 3, 8, 8)
    logits = masker.conv(F.avg_pool2d(x, 2))
    assert torch.equal(masker(x), logits[:, 0] >= logits[:, 1])
    assert masker(x).dtype == torch.bool


def test_equal_logits_are_on():
    masker = ChannelMasker(3, 4, hidden=16).eval()
    torch.nn.init.zeros_(masker.fc2.weight)
    torch.nn.init.zeros_(masker.fc2.bias)
    assert masker(torch.randn(1, 3, 4, 4)).all()


def test_gumbel_samples_at_the_softmax_rate_and_passes_gradients():
    margin = torch.full((200_000,), 1.0, requires_grad=True)
    mask = gumbel_decide(margin, torch.zeros_like(margin), temperature=1.0)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.005)
    mask.sum().backward()
    assert (margin.grad > 0).all()


def test_a_fresh_masker_gets_gradient_at_high_temperature_only():
    gradients = {}
    for temperature in (5.0, 0.1):
        logit = torch.full((1000,), 5.0, requires_grad=True)
        gumbel_decide(logit, torch.zeros(1000), temperature, noise=False).sum().backward()
        gradients[temperature] = logit.grad.mean().item()
    assert gradients[5.0] > 0.03 and gradients[0.1] < 1e-6


@pytest.mark.parametrize('kind, keys', [('mlp', {'fc1', 'fc2'}), ('linear', {'fc2'}),
                                        ('conv_linear', {'conv', 'fc2'})])
def test_channel_masker_variants(kind, keys):
    masker = ChannelMasker(32, 16, hidden=16, kind=kind).eval()
    assert {name for name, _ in masker.named_children()} == keys
    assert masker.fc2.bias.tolist() == [2.0] * 16 + [-2.0] * 16
    assert masker(torch.rand(3, 32, 5, 5)).shape == (3, 16)


@pytest.mark.parametrize('groups, hidden', [(32, 16), (256, 16), (1024, 64)])
def test_mlp_masker_has_a_sixteenth_of_the_groups_hidden_but_at_least_16(groups, hidden):
    shape = BottleneckShape('b', 0, 4, groups * 2, 16, paradigms='channel', channel_granularity=2)
    assert shape.masker_hidden == hidden


def test_rates_pass_gradients_to_the_masks():
    shape = BottleneckShape('b', 0, 4, 4, 16, paradigms='both', spatial_granularity=2)
    patches = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    channels = torch.ones(1, 4, requires_grad=True)
    record = ActivationRecord(1, (), torch.device('cpu'))
    record.add(shape, (4, 4), Decision(patches=patches, channels=channels))
    record.cost().flops.sum().backward()
    assert (patches.grad > 0).all() and (channels.grad > 0).all()


def test_static_blocks_cost_their_static_flops():
    shape = BottleneckShape('b', 0, 16, 8, 32, downsample=True)
    record = ActivationRecord(3, (), torch.device('cpu'))
    record.add(shape, (7, 9), Decision())
    cost = record.cost()
    assert cost.fraction.tolist() == [1, 1, 1] and cost.mean_rate == 1
    assert cost.static_flops == 7 * 9 * (16 * 8 + 9 * 8 * 8 + 8 * 32 + 16 * 32)


def test_costs_do_not_depend_on_autocast(make_net):
    net = make_net(paradigm='spatial')
    with torch.no_grad(), force_rate(net, 0.3):
        net(torch.rand(1, 3, 320, 320))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            inside = net.record.cost().flops
    assert torch.equal(inside, net.record.cost().flops)
