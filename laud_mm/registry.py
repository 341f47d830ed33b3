"""The `laud_mm` scope: `type='laud_mm.LAUDResNet'` builds without custom_imports."""
from importlib import import_module

from laud_mm.utils.stack import is_installed

if is_installed('mmengine'):
    from mmengine.registry import HOOKS as MMENGINE_HOOKS
    from mmengine.registry import MODELS as MMENGINE_MODELS
    from mmengine.registry import Registry
    _MODEL_PARENT, _HOOK_PARENT = dict(parent=MMENGINE_MODELS), dict(parent=MMENGINE_HOOKS)
else:
    from laud_mm.framework.registry import Registry
    _MODEL_PARENT = _HOOK_PARENT = {}

# What needs mmpretrain is imported when it is asked for: backbones must do without.
_CLASSIFIERS = {'DistillationClassifier': 'laud_mm.models.classifiers'}


class _ModelRegistry(Registry):

    def get(self, key):
        name = key.rsplit('.', 1)[-1]
        if name in _CLASSIFIERS:
            import_module(_CLASSIFIERS[name])
        return super().get(key)


MODELS = _ModelRegistry('model', scope='laud_mm', locations=['laud_mm.models'], **_MODEL_PARENT)
HOOKS = Registry('hook', scope='laud_mm', locations=['laud_mm.hooks'], **_HOOK_PARENT)
