"""What a trained network computes on a set of images: figures of every image, and a few to look at.

The papers' interpretability study: which images and which blocks get how much.
"""
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from laud_mm.models.find import find_backbones, find_running


@dataclass(frozen=True)
class SeenImage:
    """One image to look at.

    Attributes:
        index (int): Its place in the set.
        image (np.ndarray): (H, W, 3) uint8, RGB: the backbone's input.
        record (ActivationRecord): Of its batch.
        sample (int): Its place in that batch.
        fraction (float): Its FLOPs fraction.
    """
    index: int
    image: np.ndarray
    record: Any
    sample: int
    fraction: float


@dataclass
class Inspection:
    """What a backbone computed on a set of N images.

    Attributes:
        names (tuple[str, ...]): Blocks that decide.
        rates (np.ndarray): (blocks, N), shares of their units computed.
        fractions (np.ndarray): (N,), FLOPs fractions.
        labels (list[str | None]): Class of every image where it has one.
        seen (list[SeenImage]): The first images.
        least, most (list[SeenImage]): Those that got the fewest and the most FLOPs.
    """
    names: tuple
    rates: np.ndarray
    fractions: np.ndarray
    labels: list
    seen: list
    least: list = field(default_factory=list)
    most: list = field(default_factory=list)

    def by_class(self):
        """FLOPs fractions by class; empty where images have no single class."""
        names = sorted({label for label in self.labels if label is not None})
        labels = np.array(self.labels, dtype=object)
        return {name: self.fractions[labels == name] for name in names} if len(names) > 1 else {}

    def block_rows(self):
        """One row per block: its mean rate and how far the images spread."""
        return [dict(block=name, rate=rates.mean(), low=np.percentile(rates, 10),
                     high=np.percentile(rates, 90), always=(rates == 1).mean(),
                     never=(rates == 0).mean())
                for name, rates in zip(self.names, self.rates)]


def to_pictures(images, preprocessor):
    """Undo a data preprocessor's normalisation.

    Args:
        images (Tensor): (N, C, H, W), the backbone's input: one channel is grey, more than
            three are colours and others, which are not shown.
        preprocessor (nn.Module): mmdet's or mmpretrain's.

    Returns:
        np.ndarray: (N, H, W, 3) uint8, RGB.
    """
    preprocessor = getattr(preprocessor, 'data_preprocessor', preprocessor)  # of several branches
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    images = images.detach().float().cpu()
    if mean is not None:
        images = images * std.float().cpu().view(-1, 1, 1) + mean.float().cpu().view(-1, 1, 1)
    if images.shape[1] < 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    images = images[:, :3]
    if not (getattr(preprocessor, '_channel_conversion', False)
            or getattr(preprocessor, 'to_rgb', False)):
        images = images.flip(1)  # as read from files: BGR
    return images.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()


def _label_names(data, classes):
    """Class names of a batch's samples; None for samples without a single one."""
    for sample in data['data_samples']:
        label = getattr(sample, 'gt_label', None)
        single = label is not None and label.numel() == 1
        yield (classes[int(label)] if classes else str(int(label))) if single else None


def inspect_set(model, loader, max_images=1000, pictures=8):
    """Run a model over a set and note what its backbone computed.

    Args:
        model (nn.Module): Of mmdet or mmpretrain, with one LAUD backbone that runs in a test.
        loader (Iterable): Batches as `model.test_step` takes them.
        max_images (int): Images to run.
        pictures (int): Images kept of each kind.

    Returns:
        Inspection: Over the images that ran.

    Raises:
        ValueError: If the backbone decides on nothing, or there is no image.
    """
    backbones = find_backbones(model, 'inspect_set').values()
    passes, rates, fractions, labels = [], [], [], []
    classes = (getattr(getattr(loader, 'dataset', None), 'metainfo', None) or {}).get('classes')
    keep = _Keeper(pictures)
    handles = [backbone.register_forward_hook(lambda _, args, __: passes.append(args[0]))
               for backbone in backbones]
    try:
        for data in loader:
            passes.clear()
            for backbone in backbones:
                backbone.record = None
            with torch.no_grad():
                model.test_step(data)
            backbone = find_running(model, 'inspect_set')
            images, cost = passes[-1], backbone.record.cost()
            dynamic = torch.tensor(cost.dynamic)
            if not dynamic.any():
                raise ValueError('the backbone decides on nothing (paradigm=None): there is '
                                 'nothing to show')
            rates.append(cost.rates[dynamic.to(cost.rates.device)].cpu().numpy())
            fractions.append(cost.fraction.cpu().numpy())
            labels += _label_names(data, classes)
            keep.add(to_pictures(images, model.data_preprocessor), backbone.record.detach(),
                     fractions[-1])
            if keep.count >= max_images:
                break
    finally:
        for handle in handles:
            handle.remove()
    if not fractions:
        raise ValueError('the set has no image, so there is nothing to show')
    names = tuple(name for name, on in zip(cost.names, cost.dynamic) if on)
    return Inspection(names, np.concatenate(rates, 1), np.concatenate(fractions), labels,
                      keep.first, keep.least, keep.most)


class _Keeper:
    """Keeps the first images, and those of the lowest and highest FLOPs fractions."""

    def __init__(self, pictures):
        self.pictures, self.count = pictures, 0
        self.first, self.least, self.most = [], [], []

    def add(self, images, record, fractions):
        new = [SeenImage(self.count + i, image, record, i, float(fraction))
               for i, (image, fraction) in enumerate(zip(images, fractions))]
        self.count += len(new)
        self.first = (self.first + new)[:self.pictures]
        ranked = sorted(self.least + new, key=lambda seen: seen.fraction)
        self.least = ranked[:self.pictures]
        self.most = sorted(self.most + new, key=lambda seen: -seen.fraction)[:self.pictures]
