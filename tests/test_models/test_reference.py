"""The authors' released code, as recorded figures, against ours."""
from functools import partial

import numpy as np
import pytest
import torch

from laud_mm.checkpoints import convert_laudnet
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet

RESNET = partial(LAUDResNet, 50, base_channels=16)
CASES = {
    'laudnet_resnet50_layer': partial(RESNET, paradigm='layer'),
    'laudnet_resnet50_spatial_S4421': partial(RESNET, paradigm='spatial',
                                              spatial_granularity=(4, 4, 2, 1)),
    'laudnet_resnet50_channel_G2222': partial(RESNET, paradigm='channel', channel_granularity=2,
                                              mask_before_norm=True),
    'laudnet_regnety400mf_channel_G2222': partial(LAUDRegNet, 'regnety_400mf', paradigm='channel',
                                                  channel_granularity=2),
}


def widen(array):
    tensor = torch.from_numpy(array)
    return tensor.float() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize('execution', ['masked', 'skipping'])
@pytest.mark.parametrize('name', CASES)
def test_stage_outputs_and_logits_equal_the_reference(reference_dir, name, execution):
    data = np.load(reference_dir / f'{name}.npz')
    released = {k.removeprefix('weights/'): widen(data[k])
                for k in data.files if k.startswith('weights/')}
    weights = convert_laudnet(released)
    fc = [weights.pop('fc.weight'), weights.pop('fc.bias')]
    net = CASES[name](execution=execution).eval()
    net.load_state_dict(weights)

    with torch.no_grad():
        stages = net(torch.from_numpy(data['input']))
    logits = torch.nn.functional.linear(stages[-1].mean((2, 3)), *fc)
    for key, ours in [*((f'stage{i + 1}', y) for i, y in enumerate(stages)), ('logits', logits)]:
        expected = torch.from_numpy(data[key])
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max(), key

    cost = net.record.cost()
    units = data['channel_rate' if name.endswith('2222') else 'spatial_rate_conv3']
    np.testing.assert_allclose(cost.mean_rates, units, atol=1e-6)
    # Theirs multiplies batch means of the rates, ours counts each image; the
    # classifier and pools, which they count too, are 0.5 % at this width. In a
    # grouped convolution ours squares the rate of each group, theirs that of all.
    np.testing.assert_allclose(cost.block_fractions.mean(1), data['flops_fraction'], atol=0.014)
    assert cost.flops.mean().item() == pytest.approx(data['flops'].item(), rel=0.015)
