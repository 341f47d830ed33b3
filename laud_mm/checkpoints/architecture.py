"""Which backbone a checkpoint's keys and shapes belong to."""
import torch

from laud_mm.specs import FAMILIES
from laud_mm.weights import CheckpointError


def infer_backbone(state_dict):
    """Find the backbone config that weights with our keys belong to.

    Args:
        state_dict (dict[str, Tensor]): Keys of one of our backbones.

    Returns:
        dict: `type` and arguments. S cannot be seen from weights, and in others' checkpoints
        and those of before version 0.2 maskers of layers are called `spatial` too: name a
        config for these.

    Raises:
        CheckpointError: If no backbone has such keys.
    """
    for family in FAMILIES.values():
        arguments = family.infer(state_dict) if family.infer else None
        if arguments is not None:
            return dict(arguments, type=f'laud_mm.{family.backbone}')
    raise CheckpointError('the architecture cannot be inferred from the keys, the first being '
                          f'{list(state_dict)[:3]}: name a config')


def build_keys(backbone):
    """The keys and shapes of a backbone config: a model without memory for weights."""
    from laud_mm.registry import MODELS
    with torch.device('meta'):
        return MODELS.build(dict(backbone, init_cfg=None))


def is_masker_key(key):
    """Whether a backbone's key belongs to a masker."""
    return '.masker.' in key
