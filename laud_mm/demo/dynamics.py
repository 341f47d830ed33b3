"""What a trained classifier decides over a set of images, and what deciding per image is worth."""
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from laud_mm.latency.report import BackboneStatistics
from laud_mm.models.dynamic import override_decisions
from laud_mm.models.find import find_backbone, unwrap

# A block decides where its units are, in so many of the images, not as they mostly are.
DECIDING = 0.01


@dataclass(frozen=True)
class LabelledImages:
    """A set as the network takes it.

    Attributes:
        batches (tuple[Tensor, ...]): Images (N, C, H, W), ready for the backbone.
        labels (Tensor): (all N,) ints.
    """
    batches: tuple[Tensor, ...]
    labels: Tensor


@dataclass(frozen=True)
class Outcome:
    """What a classifier made of N images.

    Attributes:
        logits (Tensor): (N, classes).
        fractions (Tensor): (N,) FLOPs fraction of each image.
        flops (int): Multiply-adds of the static backbone.
        units (dict[tuple[str, str], Tensor]): (N, units) bool by block and mask.
        statistics (BackboneStatistics): Rates, for predictors.
    """
    logits: Tensor
    fractions: Tensor
    flops: int
    units: dict[tuple[str, str], Tensor]
    statistics: BackboneStatistics

    def correct(self, labels: Tensor) -> Tensor:
        """(N,) bool: whether each image is told right."""
        return self.logits.argmax(1) == labels

    def losses(self, labels: Tensor) -> Tensor:
        """(N,) cross entropies."""
        return nn.functional.cross_entropy(self.logits, labels, reduction='none')

    def rates(self) -> dict[tuple[str, str], Tensor]:
        """(units,) share of images that each unit is on for."""
        return {key: on.double().mean(0) for key, on in self.units.items()}

    def deciding_share(self) -> float:
        """Share of the dynamic blocks that are neither always on nor always off.

        A block counts where its units, on average, differ from what they mostly are in at least
        `DECIDING` of the images.
        """
        spread: dict[str, list[Tensor]] = {}
        for (block, _), rates in self.rates().items():
            spread.setdefault(block, []).append(torch.minimum(rates, 1 - rates))
        deciding = [torch.cat(own).mean().item() >= DECIDING for own in spread.values()]
        return sum(deciding) / max(len(deciding), 1)


def load_classifier(cfg: Config, checkpoint: str | Path) -> tuple[Any, Any, Any]:
    """Build a config's classifier with trained weights.

    Args:
        cfg (Config): The config, which is changed.
        checkpoint (str | Path): The weights.

    Returns:
        tuple: The classifier in evaluation, the validation and the test loader.
    """
    cfg.load_from, cfg.resume, cfg.log_level = str(checkpoint), False, 'ERROR'
    cfg.experiment_name = f'{Path(checkpoint).parent.name}_{time.time_ns()}'
    for name in ('activation', 'latency'):
        cfg.default_hooks.pop(name, None)
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    model = unwrap(runner.model).eval()
    return model, runner.val_dataloader, runner.test_dataloader


def read_images(model: Any, loader: Any) -> LabelledImages:
    """All images of a loader, preprocessed once."""
    if not hasattr(loader, 'dataset'):
        loader = Runner.build_dataloader(loader)
    batches, labels = [], []
    for data in loader:
        data = model.data_preprocessor(data, False)
        batches.append(data['inputs'])
        labels += [sample.gt_label for sample in data['data_samples']]
    return LabelledImages(tuple(batches), torch.cat(labels))


@torch.no_grad()
def run_classifier(model: Any, images: LabelledImages, execution: str = 'skipping') -> Outcome:
    """Run a classifier in evaluation over a set.

    Args:
        model (ImageClassifier): With one LAUD backbone.
        images (LabelledImages): The set.
        execution (str): 'masked' or 'skipping'.
    """
    backbone, statistics = find_backbone(model, 'the evaluation'), BackboneStatistics()
    before, backbone.execution = backbone.execution, execution
    logits, fractions, flops = [], [], 0
    units: dict[tuple[str, str], list[Tensor]] = {}
    for x in images.batches:
        logits.append(model(x, mode='tensor'))
        cost = backbone.record.cost()
        flops = cost.static_flops
        fractions.append(cost.fraction)
        statistics.add_cost(cost, x.shape[-2:])
        for block, decision in backbone.record.decisions.items():
            for mask, on in decision.masks().items():
                units.setdefault((block, mask), []).append(on.flatten(1).bool())
    backbone.execution = before
    return Outcome(torch.cat(logits), torch.cat(fractions), flops,
                   {key: torch.cat(own) for key, own in units.items()}, statistics)


def freeze_decisions(backbone: Any, images: LabelledImages, rates: dict[tuple[str, str], Tensor],
                     fraction: float) -> Any:
    """Decide alike for all images: the most often used units, up to the same FLOPs.

    Args:
        backbone (LAUDBackbone): In evaluation.
        images (LabelledImages): Of the size that counts.
        rates (dict[tuple[str, str], Tensor]): Of `Outcome.rates`, on images that are not tested.
        fraction (float): FLOPs fraction that the fixed decisions reach at least, if only just.

    Returns:
        AbstractContextManager: Within it the backbone decides so.
    """
    order = torch.cat([own.flatten() for own in rates.values()]).argsort(descending=True,
                                                                         stable=True)

    def deciding(count):
        on = torch.zeros(len(order), dtype=torch.bool)
        on[order[:count]] = True
        parts = dict(zip(rates, on.split([own.numel() for own in rates.values()])))

        def override(name, decision):
            return replace(decision, **{
                mask: parts[name, mask].view(value.shape[1:]).expand_as(value).to(value.dtype)
                for mask, value in decision.masks().items()})
        return override_decisions(backbone, override)

    low, high = 0, len(order)  # FLOPs grow with the count
    while low < high:
        middle = (low + high) // 2
        with deciding(middle), torch.no_grad():
            backbone(images.batches[0][:1])
        if backbone.record.cost().fraction.item() < fraction:
            low = middle + 1
        else:
            high = middle
    return deciding(low)


def describe(model: Any, known: LabelledImages, tested: LabelledImages,
             hard: Tensor | None = None) -> tuple[dict, Outcome]:
    """Accuracy and decisions of a classifier, and of its twin with frozen decisions.

    Args:
        model (ImageClassifier): In evaluation, with one LAUD backbone.
        known (LabelledImages): What the twin's decisions are chosen on.
        tested (LabelledImages): What accuracies are of.
        hard (Tensor, optional): (N,) bool: images of `tested` that are harder than the others.

    Returns:
        tuple[dict, Outcome]: Accuracies in percent, FLOPs in M multiply-adds; and what the
        classifier made of `tested`.
    """
    found = run_classifier(model, tested)
    masked = run_classifier(model, tested, 'masked')
    correct = found.correct(tested.labels)
    row = dict(accuracy=_percent(correct),
               masked_accuracy=_percent(masked.correct(tested.labels)),
               static_mflops=found.flops / 1e6,
               backbone_flops_fraction=found.fractions.mean().item(),
               flops_fraction_std=found.fractions.std(correction=0).item())
    if hard is not None:
        for name, part in (('easy', ~hard), ('hard', hard)):
            row[f'{name}_accuracy'] = _percent(correct[part])
            row[f'{name}_flops_fraction'] = found.fractions[part].mean().item()
    if found.units:
        row['deciding_blocks'] = found.deciding_share()
        rates = run_classifier(model, known).rates()
        backbone = find_backbone(model, 'the evaluation')
        with freeze_decisions(backbone, tested, rates, row['backbone_flops_fraction']):
            frozen = run_classifier(model, tested)
        row['frozen_accuracy'] = _percent(frozen.correct(tested.labels))
        row['frozen_flops_fraction'] = frozen.fractions.mean().item()
        row['block_rates'] = {block['name']: block['rate']
                              for block in found.statistics.report({})['blocks']}
    return row, found


def harder_half(losses: Tensor) -> Tensor:
    """(N,) bool: the half of the images with the larger losses."""
    order = losses.argsort(stable=True)[len(losses) // 2:]
    return torch.zeros(len(losses), dtype=torch.bool).index_fill_(0, order, True)


def _percent(correct):
    return correct.double().mean().item() * 100
