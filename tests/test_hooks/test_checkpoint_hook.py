"""AtomicCheckpointHook: whatever happens while writing, a complete checkpoint stays."""
import pytest
import torch
from mmengine.fileio import LocalBackend

from laud_mm.checkpoints import allow_runner_types, find_resumable
from laud_mm.utils import files

from ..toy import ToyEvaluator, make_runner


def runner(tmp_path, epochs=3, **kwargs):
    hook = dict(type='AtomicCheckpointHook', interval=1, **kwargs)
    return make_runner(tmp_path, epochs=epochs, images=2, default_hooks=dict(checkpoint=hook))


def test_old_checkpoints_go_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    present, replace = [], files.os.replace
    monkeypatch.setattr(files.os, 'replace', lambda a, b: (
        present.append(sorted(p.name for p in tmp_path.glob('epoch_*.pth'))), replace(a, b)))
    runner(tmp_path, max_keep_ckpts=1).train()
    assert present == [[], ['epoch_1.pth'], ['epoch_2.pth']]
    assert [p.name for p in tmp_path.glob('*.pth*')] == ['epoch_3.pth']


def test_the_old_best_goes_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    class Improving(ToyEvaluator):
        scores = iter([0.1, 0.3, 0.2])

        def evaluate(self, size):
            return dict(accuracy=next(self.scores))
    present, replace = [], files.os.replace
    monkeypatch.setattr(files.os, 'replace', lambda a, b: (
        present.append(sorted(p.name for p in tmp_path.glob('best_*.pth'))), replace(a, b)))
    hook = dict(type='AtomicCheckpointHook', interval=1, save_best='accuracy', rule='greater')
    make_runner(tmp_path, epochs=3, images=2, val_images=1, val_evaluator=Improving(),
                default_hooks=dict(checkpoint=hook)).train()
    assert ['best_accuracy_epoch_1.pth'] in present and [] not in present[2:]
    assert [p.name for p in tmp_path.glob('best_*')] == ['best_accuracy_epoch_2.pth']


class DiskFull(OSError):
    pass


def test_a_write_that_fails_half_way_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    put, calls = LocalBackend.put, []

    def failing_put(self, obj, path):
        calls.append(path)
        if len(calls) == 2:
            put(self, obj[:len(obj) // 2], path)
            raise DiskFull('no space left')
        put(self, obj, path)
    monkeypatch.setattr(LocalBackend, 'put', failing_put)
    with pytest.raises(DiskFull):
        runner(tmp_path, max_keep_ckpts=1).train()
    assert find_resumable(tmp_path) == tmp_path / 'epoch_1.pth'
    assert not list(tmp_path.glob('*.part'))
    allow_runner_types()
    assert torch.load(tmp_path / 'epoch_1.pth')['meta']['epoch'] == 1
