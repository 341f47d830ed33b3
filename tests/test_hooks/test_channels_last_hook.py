"""ChannelsLastHook: maps in channels-last order, the same numbers."""
import pytest
import torch

from laud_mm.registry import HOOKS

from ..toy import ToyClassifier


@pytest.mark.parametrize('paradigm', [None, 'layer'])
def test_maps_and_gradients_are_channels_last_and_the_same(paradigm):
    model = ToyClassifier(paradigm=paradigm, masker=dict(noise=False)).double().train()
    # Batch norm over a few values would make much of the last bit.
    images = torch.rand(4, 3, 64, 64, dtype=torch.float64)

    def step():
        model.zero_grad()
        maps = []
        handle = model.backbone.layer1[0].conv3.register_forward_hook(
            lambda module, args, output: maps.append(output))
        loss = model(images, torch.tensor([0, 3, 1, 2]), mode='loss')['loss_cls']
        handle.remove()
        loss.backward()
        return maps[0], [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before, expected = step()

    class Runner:
        pass

    runner = Runner()
    runner.model = model
    HOOKS.build(dict(type='laud_mm.ChannelsLastHook')).before_run(runner)
    after, found = step()
    assert before.is_contiguous() and not after.is_contiguous()
    assert after.is_contiguous(memory_format=torch.channels_last)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-6, atol=1e-9)
