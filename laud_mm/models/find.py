"""Find the LAUD backbones of any model."""
from mmengine.model import is_model_wrapper

from .backbones import LAUDBackbone


def unwrap(model):
    """The model inside a DDP wrapper."""
    return model.module if is_model_wrapper(model) else model


def find_backbone(model, user):
    """Return the model's LAUD backbone.

    Raises:
        ValueError: If the model has none, or several; `user` names who asks.
    """
    found = [(n, m) for n, m in unwrap(model).named_modules() if isinstance(m, LAUDBackbone)]
    if len(found) != 1:
        names = ', '.join(n or 'the model' for n, _ in found) or 'none'
        raise ValueError(f'{user} needs exactly one LAUD backbone in the model, found: {names}')
    return found[0][1]
