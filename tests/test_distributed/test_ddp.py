"""Two processes train like one: rates are averaged over processes before the loss."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name('train_toy.py')


def launch(folder, paradigm, processes):
    command = [sys.executable]
    if processes > 1:
        command += ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}',
                    '--master_port=0', '--rdzv_backend=c10d', '--rdzv_endpoint=127.0.0.1:0']
    result = subprocess.run([*command, SCRIPT, folder, paradigm], capture_output=True, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS='1'), timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(folder / 'weights.pth', weights_only=True)


@pytest.mark.parametrize('paradigm', ['layer', 'both'])
def test_two_processes_give_the_weights_of_one(tmp_path, paradigm):
    one = launch(tmp_path / 'one', paradigm, 1)
    two = launch(tmp_path / 'two', paradigm, 2)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-5, msg=key)
