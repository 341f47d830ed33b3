"""Two processes train like one: rates are averaged over processes before the loss."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..toy import ToyClassifier

SCRIPT = Path(__file__).with_name('train_toy.py')


def launch(folder, paradigm, processes, *checkpoint):
    command = [sys.executable]
    if processes > 1:
        command += ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}',
                    '--rdzv_backend=c10d', '--rdzv_endpoint=127.0.0.1:0']
    result = subprocess.run([*command, SCRIPT, folder, paradigm, *checkpoint], timeout=300,
                            capture_output=True, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(folder / 'weights.pth', weights_only=True)


def assert_same(two, one):
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize('paradigm', ['layer', 'both'])
def test_two_processes_give_the_weights_of_one(tmp_path, paradigm):
    assert_same(launch(tmp_path / 'two', paradigm, 2), launch(tmp_path / 'one', paradigm, 1))


def test_loaded_maskers_of_frozen_stages_freeze_on_two_processes(tmp_path):
    checkpoint = tmp_path / 'loaded.pth'
    torch.manual_seed(1)
    torch.save(ToyClassifier().state_dict(), checkpoint)
    one = launch(tmp_path / 'one', 'layer', 1, checkpoint)
    assert_same(launch(tmp_path / 'two', 'layer', 2, checkpoint), one)
    loaded = torch.load(checkpoint, weights_only=True)
    for key, value in one.items():
        frozen = key.startswith(('backbone.conv1', 'backbone.bn1', 'backbone.layer1'))
        if frozen:
            assert torch.equal(value, loaded[key]), key
    key = 'backbone.layer2.0.masker.layer.conv.weight'
    assert not torch.equal(one[key], loaded[key])
