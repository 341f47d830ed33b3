"""Killed and resumed trainings end where uninterrupted ones do, and nothing is lost."""
import importlib.util
import shutil

import pytest

from laud_mm.hooks.random_state import RandomState

from ..conftest import ROOT


@pytest.fixture
def soak(monkeypatch):
    spec = importlib.util.spec_from_file_location('soak', ROOT / 'tools' / 'soak.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'EPOCHS', 4)
    return module


def run(soak, folder, by_epoch):
    folder.mkdir(exist_ok=True)
    process = soak.start(folder, by_epoch)
    process.join()
    assert process.exitcode == 0
    return soak.torch.load(folder / 'final', weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(soak, tmp_path, by_epoch,
                                                                          monkeypatch):
    whole = run(soak, tmp_path / 'whole', by_epoch)
    # Resume from the checkpoint before the last, as after a kill; then without the state.
    name = 'epoch_3.pth' if by_epoch else 'iter_9.pth'
    for folder in ('resumed', 'forgetful'):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / 'whole' / name, tmp_path / folder)
    run(soak, tmp_path / 'resumed', by_epoch)
    assert soak.difference(tmp_path / 'resumed', whole) <= 1e-6
    monkeypatch.setattr(RandomState, 'load', lambda *_: None)
    run(soak, tmp_path / 'forgetful', by_epoch)
    assert soak.difference(tmp_path / 'forgetful', whole) > 1e-4


@pytest.mark.slow
def test_a_few_kills_lose_nothing(soak, tmp_path):
    result = soak.soak(3, tmp_path / 'soak', seed=1)
    assert result['kills'] == 3 and result['ends'] >= 1
    assert result['largest_difference'] <= 1e-6


def test_bad_cycles_are_named(soak, tmp_path):
    with pytest.raises(ValueError, match='cycles must be at least 1, got 0'):
        soak.soak(0, tmp_path)
