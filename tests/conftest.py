"""Shared helpers: small backbones with lively weights, and the reference folder."""
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from laud_mm.models.backbones import LAUDResNet

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomize_norms(model):
    """Give batch norms weights, biases and statistics that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.fixture
def make_net():
    """Build a small LAUDResNet in evaluation; keyword arguments as its own."""
    def make(depth=50, dtype=torch.float32, **kwargs):
        kwargs = dict(dict(base_channels=8), **kwargs)
        return randomize_norms(LAUDResNet(depth, **kwargs)).to(dtype).eval()
    return make


@pytest.fixture(scope='session')
def reference_dir():
    """Folder of the reference figures; skips where there is none."""
    folder = Path(os.environ.get('LAUD_REFERENCE', ROOT.parent / 'shared' / 'reference'))
    if not folder.is_dir():
        pytest.skip(f'reference figures are not at {folder}; set LAUD_REFERENCE')
    return folder
