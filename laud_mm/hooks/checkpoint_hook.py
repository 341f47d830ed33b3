"""AtomicCheckpointHook: a kill at any moment leaves a complete checkpoint to resume from."""
import os

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from laud_mm.checkpoints import allow_runner_types
from laud_mm.registry import HOOKS


class AtomicLocalBackend(LocalBackend):
    """Local files that appear complete or not at all."""

    def put(self, obj, filepath):
        part = f'{filepath}.part'
        try:
            super().put(obj, part)
            with open(part, 'rb') as f:
                os.fsync(f.fileno())
            os.replace(part, filepath)
        except OSError:
            if os.path.exists(part):
                os.remove(part)
            raise


register_backend('laud_atomic', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, safe against being killed.

    Files are written under another name and renamed when complete, and with
    `max_keep_ckpts` old ones are removed only after the new one is there.
    Arguments as mmengine's; files are local.
    """

    def __init__(self, *args, backend_args=None, **kwargs):
        super().__init__(*args, backend_args=backend_args or dict(backend='laud_atomic'), **kwargs)
        allow_runner_types()  # so that --resume reads what this hook writes

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
        if is_main_process():
            for old in stale:
                path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)
