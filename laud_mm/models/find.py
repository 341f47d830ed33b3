"""Find the LAUD backbones of any model."""
from laud_mm.framework import is_model_wrapper

from .backbones import LAUDBackbone


def unwrap(model):
    """The model inside a DDP wrapper."""
    return model.module if is_model_wrapper(model) else model


def find_backbones(model, user):
    """The LAUD backbones of a model by their names in it.

    Raises:
        ValueError: If there is none; `user` names who asks.
    """
    found = {name: module for name, module in unwrap(model).named_modules()
             if isinstance(module, LAUDBackbone)}
    if not found:
        raise ValueError(f'{user} needs a LAUD backbone in the model, found: none')
    return found


def find_running(model, user):
    """The one LAUD backbone of a model that ran in its last pass; others have no record."""
    ran = {name: net for name, net in find_backbones(model, user).items()
           if net.record is not None}
    if len(ran) != 1:
        raise ValueError(f'{user} needs one LAUD backbone that runs, found: '
                         f'{", ".join(ran) or "none"}')
    return next(iter(ran.values()))


def find_backbone(model, user, name=None, learning=False):
    """Return one LAUD backbone of a model.

    Args:
        model (nn.Module): May be wrapped for DDP.
        user (str): Who asks, for the error.
        name (str, optional): Of the backbone, such as 'student.backbone'; default: the only one.
        learning (bool): Whether only those with weights that learn count, where there are several.

    Raises:
        ValueError: If there is none, none of that name, or several and no name.
    """
    found = find_backbones(model, user)
    if name is not None:
        if name not in found:
            raise ValueError(f'backbone of {user} must be one of {", ".join(found)}, got {name!r}')
        return found[name]
    if learning and len(found) > 1:
        found = {n: m for n, m in found.items()
                 if any(p.requires_grad for p in m.parameters())} or found
    if len(found) != 1:
        names = ', '.join(n or 'the model' for n in found)
        raise ValueError(f'{user} needs exactly one LAUD backbone in the model, found: {names}; '
                         "name one, such as backbone='student.backbone'" * learning)
    return next(iter(found.values()))
