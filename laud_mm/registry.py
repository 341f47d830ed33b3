"""The `laud_mm` scope: `type='laud_mm.LAUDResNet'` builds without custom_imports."""
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='laud_mm', locations=['laud_mm.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='laud_mm', locations=['laud_mm.hooks'])
