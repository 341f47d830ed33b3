"""Sweeps: predict many settings, and choose the best granularity for a device."""
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

from laud_mm.specs import NETWORKS, Rates, dynamic_flops, network_spec
from laud_mm.specs.arguments import check_choice, paradigm_set

from .analytic import block_rates
from .calibrated import load_predictor
from .published import FUSIONS

SPATIAL_CANDIDATES = (1, 2, 4, 7, 8, 14)
CHANNEL_CANDIDATES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Setting:
    """One prediction of a sweep.

    Attributes:
        network (str): A name of `NETWORKS`.
        paradigm (str | None): As of the backbone.
        rate (float): Share of units on, in every block.
        device (str): See `load_hardware`.
        batch (int | None): Images per batch; None: the device's own.
        granularity (tuple[int, ...] | None): S of each stage for spatial
            skipping, G for channel skipping; None: the papers' best.
        fusions (tuple[str, ...]): Which fusions are on.
        channel_masker (str): 'mlp' (two layers) or 'linear' (one).
        precision (str): Such as 'fp32'.
        image_size (tuple[int, int]): Height and width.
    """
    network: str
    paradigm: str | None
    rate: float
    device: str
    batch: int | None = None
    granularity: tuple[int, ...] | None = None
    fusions: tuple[str, ...] = FUSIONS
    channel_masker: str = 'mlp'
    precision: str = 'fp32'
    image_size: tuple[int, int] = (224, 224)

    def spec(self):
        """Op specs of the network."""
        return network_spec(self.network, self.image_size, self.paradigm,
                            channel_masker=self.channel_masker,
                            **granularity_arguments(self.paradigm, self.granularity))

    def about(self):
        """What a report or a row says about the setting."""
        granularity = stage_granularity(block.shape for block in self.spec().blocks)
        return dict(network=self.network, paradigm=self.paradigm, rate=self.rate,
                    granularity=granularity and list(granularity),
                    image_size=list(self.image_size), fusions=list(self.fusions),
                    channel_masker=self.channel_masker)


def granularity_arguments(paradigm, granularity):
    """Arguments of a backbone for a granularity: S, or G where channels alone are skipped."""
    name = 'channel_granularity' if paradigm == 'channel' else 'spatial_granularity'
    return {} if granularity is None else {name: granularity}


def recorded_rates(path):
    """The rates that every block of a network had over a data set.

    Args:
        path (str): A report of the latency hook.

    Returns:
        dict[str, float]: Block name to rate.

    Raises:
        ValueError: If it is no such report.
    """
    try:
        blocks = json.loads(Path(path).read_text())['blocks']
        return {block['name']: float(block['rate']) for block in blocks}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'recorded rates must be a JSON report of LatencyHook, got {path}: '
                         f'{error!r}') from error


def network_flops(spec, rates):
    """FLOPs of a network: dict of `flops_g`, `flops_static_g` and `flops_fraction`."""
    static = spec.static_flops
    outside = sum(op.dense_flops for op in (*spec.stem, *spec.tail))
    flops = outside + sum(dynamic_flops(block.ops, rate or Rates())
                          for block, rate in zip(spec.blocks, block_rates(spec, rates)))
    return dict(flops_g=flops / 1e9, flops_static_g=static / 1e9, flops_fraction=flops / static)


class Predictors:
    """Predictors by setting, each made once.

    Args:
        published (bool): As of `AnalyticPredictor`.
        any_machine (bool): As of `CalibratedPredictor`.
    """

    def __init__(self, published=False, any_machine=False):
        self.published, self.any_machine, self._made = published, any_machine, {}

    def __getitem__(self, setting):
        key = setting.device, setting.precision, setting.fusions
        if key not in self._made:
            self._made[key] = load_predictor(setting.device, setting.precision, self.published,
                                             setting.fusions, self.any_machine)
        return self._made[key]

    def predict(self, setting):
        """Predict one setting: a `LatencyReport`."""
        spec = setting.spec()
        about = dict(setting.about(), **network_flops(spec, setting.rate))
        return self[setting].predict(spec, setting.rate, setting.batch, about)


def sweep_settings(networks, paradigms, rates, devices, batches=(None,), granularities=(None,),
                   fusions=(FUSIONS,), channel_maskers=('mlp',), precisions=('fp32',),
                   image_size=(224, 224)):
    """All combinations of the given values, as `Setting`s; repeats that mean the same once."""
    settings = []
    for network, device, paradigm, granularity, rate, batch, fused, masker, precision in \
            itertools.product(networks, devices, paradigms, granularities, rates, batches,
                              fusions, channel_maskers, precisions):
        skipped = paradigm_set(paradigm, NETWORKS[check_choice('network', network,
                                                              NETWORKS)].paradigms)
        if not {'spatial', 'channel'} & set(skipped):
            granularity = None
        if 'channel' not in skipped:
            masker = 'mlp'
        setting = Setting(network, paradigm, rate, device, batch, granularity, tuple(fused),
                          masker, precision, tuple(image_size))
        if setting not in settings:
            settings.append(setting)
    return settings


def sweep_row(report):
    """One flat dict of a report, for tables, CSV and plots; latencies per image."""
    about = dict(report.about)
    row = dict(network=about.get('network'), device=report.device, paradigm=about.get('paradigm'),
               granularity='-'.join(map(str, about.get('granularity') or ())) or None,
               rate=about.get('rate'), batch=report.batch,
               image_size='x'.join(map(str, about.get('image_size', ()))),
               precision=report.precision,
               fusions='+'.join(about.get('fusions', ())) or 'none',
               channel_masker=about.get('channel_masker'),
               flops_fraction=about.get('flops_fraction'),
               latency_per_image_ms=report.latency_per_image_ms,
               static_latency_per_image_ms=report.static_latency_per_image_ms,
               ratio=report.ratio)
    for stage in report.stages():
        row[f'stage{stage["stage"]}_ratio'] = (stage['latency_per_image_ms']
                                               / stage['static_latency_per_image_ms'])
    return row


def stage_granularity(shapes):
    """S or G of every stage of blocks that have one, else None.

    Args:
        shapes (Iterable[BottleneckShape | TransformerShape]): Of a network's blocks.
    """
    sides = dict(spatial='spatial_granularity', channel='channel_granularity')
    found: dict = {}
    for shape in shapes:
        own = next((getattr(shape, side) for paradigm, side in sides.items()
                    if paradigm in shape.paradigms), None)
        found[shape.stage] = found.get(shape.stage) or own
    return list(found.values()) if any(found.values()) else None


def best_granularity(predictors, setting, candidates=None, tolerance=0.02):
    """Choose S (or G) of each stage for a device, as the papers use the predictor.

    Args:
        predictors (Predictors): What predicts.
        setting (Setting): A 'spatial' or 'channel' setting; its granularity is ignored.
        candidates (Sequence[int], optional): Values tried in each stage.
        tolerance (float): A finer granularity adapts better to the image, so
            the finest within this share of the fastest is taken.

    Returns:
        tuple[tuple[int, ...], list[dict]]: The choice, and for each stage and
        candidate the latency per image.

    Raises:
        ValueError: If the paradigm has no granularity.
    """
    if setting.paradigm not in ('spatial', 'channel'):
        raise ValueError(f"paradigm must be 'spatial' or 'channel' to choose a granularity, got "
                         f'{setting.paradigm!r}')
    candidates = candidates or (SPATIAL_CANDIDATES if setting.paradigm == 'spatial'
                                else CHANNEL_CANDIDATES)
    rows = []
    for value in candidates:
        report = predictors.predict(replace(setting, granularity=(value,) * 4))
        rows += [dict(stage=stage['stage'], granularity=value,
                      latency_per_image_ms=stage['latency_per_image_ms'],
                      ratio=stage['latency_per_image_ms'] / stage['static_latency_per_image_ms'])
                 for stage in report.stages()]
    choice = []
    for stage in sorted({row['stage'] for row in rows}):
        own = [row for row in rows if row['stage'] == stage]
        fastest = min(row['latency_per_image_ms'] for row in own)
        choice.append(min(row['granularity'] for row in own
                          if row['latency_per_image_ms'] <= fastest * (1 + tolerance)))
    return tuple(choice), rows
