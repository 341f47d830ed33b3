"""The `laud_mm` scope: `type='laud_mm.LAUDResNet'` builds without custom_imports."""
from importlib import import_module

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

# What needs mmpretrain is imported when it is asked for: backbones must do without.
_CLASSIFIERS = {'DistillationClassifier': 'laud_mm.models.classifiers'}


class _ModelRegistry(Registry):

    def get(self, key):
        name = key.rsplit('.', 1)[-1]
        if name in _CLASSIFIERS:
            import_module(_CLASSIFIERS[name])
        return super().get(key)


MODELS = _ModelRegistry('model', parent=MMENGINE_MODELS, scope='laud_mm',
                        locations=['laud_mm.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='laud_mm', locations=['laud_mm.hooks'])
