"""What the config of a whole model says about its backbone and its images."""
from collections.abc import Iterator, Mapping
from typing import Any

from .arguments import type_name
from .families import FAMILIES
from .opspec import Size

# Papers give a detector's figures at 800x1216, which stands for images of 800 to 1333 pixels.
_ASPECT = 1216 / 800


def find_backbone_config(model: Any, name: str = 'model') -> tuple[str, Any]:
    """The config of the LAUD backbone inside a model's config: its own, or the only one.

    Args:
        model (dict): Config of a model; the backbone may lie deep, such as in a detector inside
            a test-time augmentation.
        name (str): What the config is called.

    Returns:
        tuple[str, dict]: Its place, such as 'model.module.backbone', and the config.

    Raises:
        ValueError: If there is none, or several and none of them is the model's own `backbone`.
    """
    found = dict(_backbone_configs(model, name))
    own = f'{name}.backbone'  # beside a teacher's, for example
    if own in found:
        return own, found[own]
    if len(found) != 1:
        raise ValueError(f'{name} must hold the config of one LAUD backbone (type '
                         f'{", ".join(FAMILIES)}), found: {", ".join(found) or "none"}')
    return next(iter(found.items()))


def _backbone_configs(config: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping):
        if config.get('type') is not None and type_name(config) in FAMILIES:
            yield place, config
        for key, value in config.items():
            yield from _backbone_configs(value, f'{place}.{key}')
    elif isinstance(config, (list, tuple)):
        for index, value in enumerate(config):
            yield from _backbone_configs(value, f'{place}[{index}]')


def configured_size(cfg: Mapping) -> Size:
    """Height and width of the images that the test pipeline of a config makes.

    Args:
        cfg (dict): The whole config. A detector's short side is as its pipeline says, the
            long one as papers have it: 800x1216 for `scale=(1333, 800)`.

    Returns:
        tuple[int, int]: Without such a pipeline 800x1216 for a detector, 224x224 for others.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    found = [size for step in dataset.get('pipeline') or cfg.get('test_pipeline') or ()
             if (size := _size_of(step)) is not None]
    if found:
        return found[-1]
    return (800, 1216) if is_detector(cfg.get('model')) else (224, 224)


def is_detector(model: Any) -> bool:
    """Whether a model's config has heads inside, as `rpn_head`; a classifier's is `head`."""
    return isinstance(model, Mapping) and any(
        key.endswith('_head') or is_detector(value) for key, value in model.items())


def _size_of(step):
    """The size that a step of a pipeline makes; None if it makes none."""
    kind = type_name(step)
    size = step.get('crop_size') if kind == 'CenterCrop' else step.get('scale')
    if kind not in ('CenterCrop', 'Resize', 'FixScaleResize', 'ResizeEdge'):
        return None
    if isinstance(size, int):
        return size, size
    if not isinstance(size, (list, tuple)):
        return None
    if step.get('keep_ratio'):
        short = min(size)
        return short, min(round(short * _ASPECT / 32) * 32, max(max(size), short))
    return tuple(size)[::-1]
