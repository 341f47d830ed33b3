"""Figures that follow from a config alone: parameters, FLOPs, predicted latency."""
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from laud_mm.latency import AnalyticPredictor, load_hardware
from laud_mm.latency.calibrated import CalibratedPredictor
from laud_mm.registry import MODELS
from laud_mm.specs import NetworkSpec, backbone_spec, dynamic_flops, static_flops

from .entries import Entry

# Devices of the tables; the precision is what inference takes there.
DEVICES = {'V100': 'fp32', 'RTX3090': 'fp32', 'RTX3060': 'fp32', 'TX2': 'fp32', 'Nano': 'fp32',
           'H200': 'fp16', 'CPU': 'fp32'}

# Arguments of a backbone that change none of its figures.
_UNCOUNTED = ('init_cfg', 'frozen_stages', 'norm_cfg', 'norm_eval', 'out_indices', 'execution',
              'plan', 'with_cp')


@dataclass(frozen=True)
class Figures:
    """What follows from a config.

    Attributes:
        parameters_m (float): Of the backbone with its maskers, in millions.
        static_parameters_m (float): Without maskers.
        flops_static_g (float): G multiply-adds of the static backbone.
        flops_g (float): At the target.
        rate (float): Share of units on that meets the target, the same in every block.
        latency_ms (dict[str, tuple[float, float, int]]): Device to predicted
            latency per image, static and at `rate`, and the batch.
    """
    parameters_m: float
    static_parameters_m: float
    flops_static_g: float
    flops_g: float
    rate: float
    latency_ms: dict[str, tuple[float, float, int]] = field(default_factory=dict)


def all_figures(entries: Iterable[Entry],
                calibrations: Iterable[str | Path] = ()) -> dict[str, Figures]:
    """The figures of every entry by its name; equal backbones are worked out once.

    Args:
        entries (Iterable[Entry]): Of the zoo.
        calibrations (Iterable[str | Path]): Files of `tools/latency.py calibrate`: more
            machines, of any kind, to predict convolutional classifiers for.
    """
    measured = [CalibratedPredictor(path, any_machine=True) for path in calibrations]
    known: dict[str, Figures] = {}
    figures = {}
    for entry in entries:
        own = {k: v for k, v in entry.backbone.items() if k not in _UNCOUNTED}
        key = repr((sorted(own.items()), entry.image_size, entry.target, bool(entry.detector)))
        if key not in known:
            known[key] = figures_of(entry, calibrated=measured)
        figures[entry.name] = known[key]
    return figures


def figures_of(entry: Entry, devices: dict[str, str] | None = None,
               calibrated: Iterable[CalibratedPredictor] = ()) -> Figures:
    """Work out an entry's figures.

    Args:
        entry (Entry): Of the zoo.
        devices (dict[str, str], optional): Device to precision; default: `DEVICES`.
        calibrated (Iterable[CalibratedPredictor]): See `all_figures`.
    """
    network = backbone_spec(entry.backbone, entry.image_size)
    static = network.static_flops
    rate = 1.0 if entry.target is None else rate_for(network, entry.target)
    flops = static if entry.target is None else flops_at(network, rate)
    latency = {}
    for device, precision in (DEVICES if devices is None else devices).items():
        # Detectors get one large image at a time, classifiers the device's own batch.
        batch = 1 if entry.detector else load_hardware(device).batch
        report = AnalyticPredictor(device, precision).predict(network, rate, batch)
        latency[device] = (report.static_latency_per_image_ms, report.latency_per_image_ms, batch)
    # A calibration is of the batch that detectors and users of one image have.
    if entry.data in ('in1k', 'coco'):
        for predictor in (p for p in calibrated if p.knows(network)):
            report = predictor.predict(network, rate, 1)
            stamp = predictor.stamp
            name = f'{stamp["name"]} ({stamp["threads"]} threads), calibrated'
            latency[name] = (report.static_latency_per_image_ms, report.latency_per_image_ms, 1)
    total, maskers = count_parameters(entry.backbone)
    return Figures(total / 1e6, (total - maskers) / 1e6, static / 1e9, flops / 1e9, rate, latency)


def flops_at(network: NetworkSpec, rate: float) -> float:
    """Multiply-adds of a backbone whose blocks all have the same share of units on."""
    return static_flops(network.stem) + static_flops(network.tail) + sum(
        dynamic_flops(block.ops, block.expected_rates(rate)) for block in network.blocks)


def rate_for(network: NetworkSpec, target: float) -> float:
    """The share of units on at which a backbone has a FLOPs fraction; 0 or 1 if it cannot."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        below = flops_at(network, middle) < target * network.static_flops
        low, high = (middle, high) if below else (low, middle)
    return high


def count_parameters(backbone: dict) -> tuple[int, int]:
    """Parameters of a config's backbone: all of them, and those of its maskers."""
    settings = {k: v for k, v in backbone.items() if k != 'init_cfg'}
    with torch.device('meta'):
        net = MODELS.build(settings)
    maskers = sum(p.numel() for masker in net.maskers() for p in masker.parameters())
    return sum(p.numel() for p in net.parameters()), maskers
