"""Start a backbone from a checkpoint, and say key by key what does not fit."""
from typing import Any

from laud_mm.framework import load_checkpoint, print_log

from .layout import rename_keys
from .safe import CheckpointError, load_state_dict, unwrap_weights


def read_backbone(checkpoint, prefix=None, map_location='cpu'):
    """Read a backbone's weights from any checkpoint that `load_checkpoint` opens.

    Args:
        checkpoint (str): File, URL or 'torchvision://...', and with mmengine what else it opens.
        prefix (str, optional): What the backbone's keys start with, such as
            'backbone.' in a classifier's or detector's checkpoint; others are left aside.
        map_location (str): Device to read to.

    Returns:
        dict[str, Tensor]: Without the prefix, see also `unwrap_weights`.

    Raises:
        CheckpointError: If no key starts with `prefix`.
    """
    if str(checkpoint).endswith('.safetensors') and '://' not in str(checkpoint):
        weights = load_state_dict(checkpoint)
    else:
        weights = unwrap_weights(load_checkpoint(checkpoint, map_location, logger='silent'))
    if not prefix:
        return weights
    prefix = prefix.rstrip('.') + '.'
    own = {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix)}
    if not own:
        raise CheckpointError(f'no key of {checkpoint} starts with the prefix {prefix!r}; they '
                              f'start with {", ".join(sorted({k.split(".")[0] for k in weights}))}')
    return own


def load_pretrained(backbone: Any, checkpoint: str, prefix: str | None = None,
                    map_location: str = 'cpu') -> None:
    """Load a backbone's weights as `init_cfg=dict(type='Pretrained', ...)` says.

    Maskers that the checkpoint does not hold, and norms of a ConvNeXt's inner stages, keep their
    fresh weights, and keys that are not the backbone's are left aside; both are logged by name.

    Args:
        backbone (LAUDBackbone): Loaded in place, all of it or nothing.
        checkpoint (str): See `read_backbone`.
        prefix (str, optional): See there.
        map_location (str): See there.

    Raises:
        CheckpointError: If a weight of the static network is missing, or any
            weight has another shape; all of them are named.
    """
    own = backbone.state_dict()
    weights = rename_keys(read_backbone(checkpoint, prefix, map_location), own)
    # Older checkpoints lack the counters of batch norms, which inference does not read.
    missing = [k for k in own if k not in weights and not k.endswith('num_batches_tracked')]
    may_lack = backbone.starts_fresh()
    fresh = [k for k in missing if k in may_lack]
    static = [k for k in missing if k not in may_lack]
    shapes = [f'{k}: {tuple(weights[k].shape)}, the backbone has {tuple(own[k].shape)}'
              for k in own if k in weights and weights[k].shape != own[k].shape]
    if static or shapes:
        raise CheckpointError('\n'.join([
            f'{checkpoint} does not fit {type(backbone).__name__}; nothing was loaded',
            *_listed('missing from the checkpoint', static),
            *_listed('of another shape', shapes),
            *_advice(static, weights, prefix)]))
    backbone.load_state_dict(weights, strict=False)
    loaded, aside = [k for k in own if k in weights], [k for k in weights if k not in own]
    print_log('\n'.join([
        f'{checkpoint}: loaded {len(loaded)} of {len(own)} weights of the backbone',
        *_listed('maskers and output norms that it does not hold start fresh', fresh),
        *_listed("not the backbone's, left aside", aside)]), logger='current')


def _listed(title, names):
    return [f'{title} ({len(names)}):', *(f'  {n}' for n in names)] if names else []


def _advice(static, weights, prefix):
    """Name the prefix that was forgotten, if that is what is wrong."""
    if static and not prefix and f'backbone.{static[0]}' in weights:
        return ["its keys start with 'backbone.': set prefix='backbone.'"]
    return []
