"""What the configs say: one entry per config."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from laud_mm.evaluation import configured_target
from laud_mm.specs import family_of, find_backbone_config

DETECTORS = {'faster_rcnn': 'Faster R-CNN', 'retinanet': 'RetinaNet', 'mask_rcnn': 'Mask R-CNN',
             'ddq_detr': 'DDQ-DETR', 'mask2former': 'Mask2Former'}
DATA = {'in1k': 'ImageNet-1k', 'coco': 'COCO', 'demo': 'demo set', 'digits': 'digits',
        'fashion': 'Fashion-MNIST'}
SIZES = {'in1k': (224, 224), 'coco': (800, 1216), 'demo': (160, 160), 'digits': (48, 48),
         'fashion': (32, 32)}


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name (str): Of its config file, without `.py`.
        detector (str | None): A key of `DETECTORS`, None for a classifier.
        data (str): A key of `DATA`.
        network (str): Such as 'resnet101', as the predictor names it.
        backbone (dict): The config's `model.backbone`.
        target (float | None): FLOPs fraction trained for; None: static.
    """
    name: str
    detector: str | None
    data: str
    network: str
    backbone: dict
    target: float | None

    @property
    def family(self) -> str:
        """Name of its metafile's collection."""
        if self.detector:
            return f'LAUD {DETECTORS[self.detector]}'
        return family_of(self.backbone).title

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that figures are given for."""
        return SIZES[self.data]

    @property
    def skips(self) -> str:
        """What is skipped, in words, with S or G."""
        paradigm = self.backbone.get('paradigm', 'layer')
        if paradigm is None:
            return 'none'
        text = paradigm if isinstance(paradigm, str) else ' + '.join(paradigm)
        for kind, letter in (('spatial', 'S'), ('channel', 'G')):
            value = self.backbone.get(f'{kind}_granularity', (4, 4, 2, 1) if kind == 'spatial'
                                      else (2, 2, 2, 2))
            if kind == paradigm:
                values = [value] * 4 if isinstance(value, int) else value
                text += f', {letter} = {"-".join(map(str, values))}'
        return text


def read_entries(config_dir: str | Path) -> list[Entry]:
    """Read every config that defines a LAUD backbone.

    Args:
        config_dir (str | Path): Folder of the configs.

    Returns:
        list[Entry]: Sorted by name.
    """
    return [_read(path) for path in sorted(Path(config_dir).glob('*.py'))]


def _read(path):
    cfg = Config.fromfile(path)
    backbone = _plain(find_backbone_config(cfg.model)[1])
    detector = next((d for d in DETECTORS if path.stem.startswith(f'{d}_')), None)
    data = next((d for d in ('demo', 'digits', 'fashion', 'in1k') if d in path.stem), 'coco')
    static = backbone.get('paradigm', 'layer') is None
    return Entry(path.stem, detector, data, _network(backbone), backbone,
                 None if static else _target(cfg))


def _target(cfg):
    for hook in (cfg.get('default_hooks') or {}).values():
        loss = (hook or {}).get('loss') or {}
        targets = {value for key, value in loss.items() if key.endswith('target')}
        if targets:
            return min(targets)
    return configured_target(cfg)


def _network(backbone):
    return family_of(backbone).name_of(backbone)


def _plain(value: Any) -> Any:
    """A config as plain dicts, without the scope that mmengine notes in it."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != '_scope_'}
    return type(value)(map(_plain, value)) if isinstance(value, (list, tuple)) else value
