"""Shared helpers: small backbones with lively weights, and the reference folder."""
import os
from pathlib import Path

import pytest
import setuptools  # noqa: F401  torch's compiler needs it to come before Python's distutils
import torch
from torch import nn

from laud_mm.models.backbones import LAUDConvNeXt, LAUDRegNet, LAUDResNet, LAUDT2TViT
from laud_mm.models.dynamic import ActivationRecord, Execution, ForwardPass, forward_pass

ROOT = Path(__file__).resolve().parents[1]
TINY_REGNET = dict(widths=(16, 24, 32, 48), depths=(1, 2, 2, 1), group_widths=(8, 4, 16, 8))
TINY_T2T = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=40)
TINY_CONVNEXT = dict(depths=(1, 2, 2, 1), channels=(16, 24, 40, 56))
# For tests of what every backbone does.
ARCHS = pytest.mark.parametrize('arch', [50, TINY_REGNET], ids=['resnet', 'regnet'])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomize_norms(model):
    """Give norms weights, biases and statistics that matter."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def run_block(block, x, masked=False, override=None, **execution):
    """Run a block alone: its output and its decision."""
    record = ActivationRecord(len(x), (), x.device)
    own = Execution('masked' if masked else 'skipping', override=override, **execution)
    with forward_pass(ForwardPass(own, masked, record)):
        return block(x), record.blocks[0].decision


@pytest.fixture
def make_net():
    """Build a small backbone in evaluation: of a ResNet's depth, another family's arch."""
    def make(arch=50, dtype=torch.float32, **kwargs):
        if isinstance(arch, int):
            net = LAUDResNet(arch, **dict(dict(base_channels=8), **kwargs))
        elif 'embed_dims' in arch:
            net = LAUDT2TViT(arch, **dict(dict(img_size=64, token_dim=16), **kwargs))
        elif 'channels' in arch:
            net = LAUDConvNeXt(arch, **dict(dict(layer_scale_init_value=1.0), **kwargs))
        else:
            net = LAUDRegNet(arch, **kwargs)
        net = randomize_norms(net).eval()
        return net if dtype == torch.float32 else net.to(dtype)  # fake tensors stay as made
    return make


@pytest.fixture(scope='session')
def reference_dir():
    """Folder of the reference figures; skips where there is none."""
    folder = Path(os.environ.get('LAUD_REFERENCE', ROOT.parent / 'shared' / 'reference'))
    if not folder.is_dir():
        pytest.skip(f'reference figures are not at {folder}; set LAUD_REFERENCE')
    return folder
