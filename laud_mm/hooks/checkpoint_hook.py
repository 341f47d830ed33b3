"""AtomicCheckpointHook: a kill at any moment leaves a complete checkpoint to resume from."""
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from laud_mm.registry import HOOKS
from laud_mm.utils.files import replacing

from .random_state import RandomState


class AtomicLocalBackend(LocalBackend):
    """Local files that appear complete or not at all."""

    def put(self, obj, filepath):
        with replacing(filepath) as part:
            super().put(obj, str(part))


register_backend('laud_atomic', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, safe against being killed.

    Files are written under another name and renamed when complete; old ones
    (`max_keep_ckpts`, `save_best`) are removed only after the new one is there.
    The state of the random numbers is part of a checkpoint (of one process), so
    that a resumed training without workers ends where an uninterrupted one does.
    Arguments as mmengine's; files are local.
    """

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any):
        super().__init__(*args, backend_args=backend_args or dict(backend='laud_atomic'), **kwargs)
        self._random_state = RandomState()

    def before_save_checkpoint(self, runner, checkpoint):
        self._random_state.save(checkpoint)

    def after_load_checkpoint(self, runner, checkpoint):
        if runner._resume:
            self._random_state.load(checkpoint)

    def before_train_epoch(self, runner):
        self._random_state.begin_epoch(runner.train_loop)

    def before_val(self, runner):
        self._random_state.begin_val()

    def after_val(self, runner):
        self._random_state.end_val()

    def _save_checkpoint_with_step(self, runner, step, meta):
        stale = []
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) >= self.max_keep_ckpts:
                stale.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        keep, self.max_keep_ckpts = self.max_keep_ckpts, -1  # the base class removes first
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = keep
        for old in stale:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _save_best_checkpoint(self, runner, metrics):
        if not self.save_best:
            return
        # The base class removes the files it finds here before it writes new ones.
        several = len(self.key_indicators) > 1
        before = dict(self.best_ckpt_path_dict) if several else {None: self.best_ckpt_path}
        if several:
            self.best_ckpt_path_dict = dict.fromkeys(before)
        else:
            self.best_ckpt_path = None
        super()._save_best_checkpoint(runner, metrics)
        for key, old in before.items():
            new = self.best_ckpt_path_dict[key] if several else self.best_ckpt_path
            if new is None and several:
                self.best_ckpt_path_dict[key] = old
            elif new is None:
                self.best_ckpt_path = old
            elif old and old != new:
                self._remove(old)

    def _remove(self, path):
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
