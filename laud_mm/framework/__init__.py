"""What the core takes from mmengine and mmcv, in one place; plain torch where they are missing.

Only this package, `laud_mm.registry` and what needs a framework anyway (hooks, the distillation
classifier, configs) import mm* packages. So backbones, operations, latency and deployment need
torch and numpy alone, and are modules of the frameworks where these are installed.
"""
from collections.abc import Iterator
from contextlib import contextmanager

from laud_mm.utils.stack import is_installed

if is_installed('mmengine'):
    from mmengine.dist import all_gather_object
    from mmengine.logging import MMLogger, print_log
    from mmengine.model import BaseModule, ModuleDict, ModuleList, Sequential, is_model_wrapper
    from mmengine.runner.checkpoint import CheckpointLoader

    load_checkpoint = CheckpointLoader.load_checkpoint

    @contextmanager
    def quiet_initialisation() -> Iterator[None]:
        """Without mmengine's log of every weight that `init_weights` sets."""
        logger = MMLogger.get_current_instance()
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before
else:
    from .plain import (
        BaseModule,
        ModuleDict,
        ModuleList,
        Sequential,
        all_gather_object,
        is_model_wrapper,
        load_checkpoint,
        print_log,
        quiet_initialisation,
    )

if is_installed('mmengine') and is_installed('mmcv'):  # which needs the former
    from mmcv.cnn import build_conv_layer, build_norm_layer
    from mmcv.cnn.bricks import DropPath
else:
    from .plain import DropPath, build_conv_layer, build_norm_layer

__all__ = ['BaseModule', 'DropPath', 'ModuleDict', 'ModuleList', 'Sequential',
           'all_gather_object', 'build_conv_layer', 'build_norm_layer', 'is_model_wrapper',
           'load_checkpoint', 'print_log', 'quiet_initialisation']
