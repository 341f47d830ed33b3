"""Deployed networks that see images of many sizes for long do not grow."""
import importlib.util

import psutil
import pytest
import torch

from laud_mm.deploy import CompiledBackbone, deploy, load, write_artefact
from laud_mm.deploy.onnx.runtimes import PACKAGES
from laud_mm.models.backbones import LAUDResNet

from ..conftest import randomize_norms

SIZES = [(33 + 5 * (i % 10), 37 + 7 * (i // 10)) for i in range(50)]
RUNS, ALLOWED_MB = 5000, 50


def made(form, folder):
    """One stage of a ResNet, whose blocks are on and off, as a function of images."""
    net = LAUDResNet(50, base_channels=8, num_stages=1, strides=(1,), dilations=(1,),
                     out_indices=(0,), paradigm='layer')
    for masker in net.maskers():
        for parameter in masker.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    deployed = deploy(randomize_norms(net).eval(), with_decisions=True)
    if form == 'eager':
        return deployed
    if form == 'compiled':
        return CompiledBackbone(deployed)
    if form in PACKAGES and not importlib.util.find_spec(PACKAGES[form]):
        pytest.skip(f'{PACKAGES[form]} is not installed: pip install laud-mm[deploy]')
    write_artefact(deployed, folder, form, (64, 64))
    return load(folder)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['eager', 'compiled', 'aoti', 'onnx', 'openvino'])
def test_many_runs_of_many_sizes_do_not_grow(form, tmp_path):
    net, process = made(form, tmp_path), psutil.Process()
    generator = torch.Generator().manual_seed(0)

    def run(count):
        for i in range(count):
            height, width = SIZES[i * 7 % len(SIZES)]
            net(torch.randn(1 + i % 2, 3, height, width, generator=generator))
    with torch.no_grad():
        run(10 * len(SIZES))  # caches of the largest sizes
        before = process.memory_info().rss
        run(RUNS)
    grown_mb = (process.memory_info().rss - before) / 2**20
    print(f'{form}: {before / 2**20:.0f} MB, and {grown_mb:.1f} MB in {RUNS} runs')
    assert grown_mb < ALLOWED_MB
