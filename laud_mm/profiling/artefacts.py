"""Time deployed nets beside static nets in the same runtime, on images that they decide about."""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laud_mm.deploy import Artefact, deploy, load, load_scales, write_artefact
from laud_mm.deploy.artefact import TORCH_KINDS, read_card
from laud_mm.deploy.onnx.runtimes import PACKAGES, has_bf16, need
from laud_mm.deploy.tokens import TokenBackbone, has_tokens
from laud_mm.latency.measure import LatencyStats, keep_freed_memory, measure_interleaved
from laud_mm.latency.plans import PRECISIONS
from laud_mm.latency.sweep import stage_granularity

from .bench import BenchSetting, compiled_static, fastest_statics, static_net
from .calibrate import DTYPES
from .peers import static_peers

PRECISION_NAMES = {dtype: name for name, dtype in PRECISIONS.items()} | {'int8': 'int8'}


@dataclass(frozen=True)
class NetTimes:
    """Latencies of a net on several batches, in ms per batch.

    Attributes:
        ms (float): The mean over the batches of the median of the repeats.
        stats (LatencyStats): Of all runs: they differ from batch to batch too, where decisions
            do.
    """
    ms: float
    stats: LatencyStats


def time_nets(nets: Mapping[str, Callable[[Tensor], Any]], batches: Sequence[Tensor],
              warmup: int = 2, repeats: int = 5, settle: bool = False) -> dict[str, NetTimes]:
    """Time nets in turn, batch by batch.

    Args:
        nets (dict[str, Callable]): Functions of images by name.
        batches (Sequence[Tensor]): (N, C, H, W) images.
        warmup (int): Untimed runs of each on each batch.
        repeats (int): Timed runs of each on each batch.
        settle (bool): For nets of several runtimes, see `measure_interleaved`.
    """
    programs: Any = {(name, i): partial(net, x) for i, x in enumerate(batches)
                     for name, net in nets.items()}
    with torch.no_grad():
        _, samples = measure_interleaved(programs, batches[0].device, warmup, repeats,
                                         settle=settle)
    own = {name: [samples[name, i] for i in range(len(batches))] for name in nets}
    return {name: NetTimes(float(np.median(times, 1).mean()),
                           LatencyStats.of(np.concatenate(times))) for name, times in own.items()}


def random_images(count: int, channels: int, image_size: Sequence[int]) -> Tensor:
    """Smooth random images with noise, (N, C, H, W): unlike each other, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(count, channels, 4, 4, generator=generator),
                           tuple(image_size), mode='bilinear')
    return smooth + 0.3 * torch.randn(count, channels, *image_size, generator=generator)


def deployed_form(net: Any, to: str, **options: Any) -> nn.Module:
    """What `write_artefact` takes of a backbone, see `deploy`; transformers have no options."""
    if has_tokens(net) and to not in TORCH_KINDS:
        return TokenBackbone(net, options.get('with_decisions', False))
    return deploy(net, **options)


def open_as(made: Any, to: str, folder: str | Path, image_size: Sequence[int], batch: int,
            precision: str | None = None) -> Artefact:
    """Write a deployed net as an artefact and read it for images of one size.

    Args:
        made (DeployedBackbone): What is written.
        to (str): Kind of the artefact. ONNX and OpenVINO have forms for one image of nets of
            bottleneck blocks, which are taken where `batch` is 1.
        folder (str | Path): To write into.
        image_size (Sequence[int]): Height and width.
        batch (int): Images.
        precision (str, optional): See `load`.
    """
    one = batch == 1 and to not in TORCH_KINDS and not isinstance(made, TokenBackbone)
    write_artefact(made, folder, to, image_size, one_image=one)
    return load(folder, image_size, precision)


def check_measurable(card: Mapping[str, Any], device: str, batches: Sequence[int],
                     image_size: Sequence[int], precision: str | None = None) -> None:
    """Refuse what an artefact cannot run.

    Args:
        card (dict): Its card.
        device (str): Where it is to run.
        batches (Sequence[int]): Numbers of images.
        image_size (Sequence[int]): Height and width.
        precision (str, optional): See `load`.

    Raises:
        ValueError: With the name of the argument, before any work.
        RuntimeError: If its runtime is missing.
    """
    (images,) = card['inputs']
    if not isinstance(card.get('backbone'), dict):
        raise ValueError('artifact must be a folder of tools/deploy.py, whose card has the '
                         "backbone's config; this card has none: deploy again")
    if torch.device(device).type != card['device']:
        raise ValueError(f'device must be {card["device"]}, for which the artefact was made, got '
                         f'{device}')
    if min(image_size) < images['smallest_side']:
        raise ValueError(f'size must be at least {images["smallest_side"]} x '
                         f'{images["smallest_side"]} for the artefact, got '
                         f'{image_size[0]} x {image_size[1]}')
    for batch in batches:
        if batch < 1 or images.get('batch') not in (None, batch):
            raise ValueError(f'batch must be {images.get("batch", "at least 1")} for the '
                             f'artefact, got {batch}')
    kind = card['kind']
    if kind not in TORCH_KINDS:
        need(PACKAGES[kind])
        if kind == 'openvino' and precision == 'bf16' and not has_bf16():
            raise ValueError("precision must be 'fp32' on this CPU, which has no bfloat16 "
                             "instructions, got 'bf16'")
        if kind != 'openvino' and precision not in (None, 'fp32'):
            raise ValueError(f"precision must be 'fp32' for {kind!r}, got {precision!r}")
    elif precision is not None:
        raise ValueError(f'precision must be left out for {kind!r}, which computes in '
                         f'{card["computes_in"]}, got {precision!r}')


def measure_artefact(folder: str | Path, batches: Sequence[Tensor], precision: str | None = None,
                     compile_static: bool = False, peers: bool = False, warmup: int = 2,
                     repeats: int = 5) -> dict:
    """Time an artefact beside the static net of the same config in the same runtime.

    Both are for images of one size where the runtime can plan for one. The static net has fresh
    weights.

    Args:
        folder (str | Path): Of tools/deploy.py.
        batches (Sequence[Tensor]): (N, C, H, W) float32 images of one shape.
        precision (str, optional): See `load`.
        compile_static (bool): Also time the static net under `torch.compile`, weights frozen.
        peers (bool): Also time the static net in other runtimes, see `static_peers`.
        warmup, repeats (int): Runs of each net on each batch.

    Returns:
        dict: As of `measure_setting` where it applies; `realised_rate` is that of what the
        artefact decides, None where it does not return it. `ratios` are those of the means over
        the batches of the medians over the repeats; percentiles are over all runs.

    Raises:
        ValueError, RuntimeError: See `check_measurable` and `load`.
    """
    card, (batch, _, *size) = read_card(folder), batches[0].shape
    kind, device = card['kind'], batches[0].device
    check_measurable(card, device.type, [batch], size, precision)
    torch.manual_seed(0)
    keep_freed_memory()
    net = load(folder, size, precision)
    computes = artefact_precision(card, precision)
    settings = {key: value for key, value in card['backbone'].items() if key != 'plan'}
    name = Path(card['config'] or folder).stem
    setting = BenchSetting(name, settings.get('paradigm', 'layer'), 1.0, batch,
                           image_size=tuple(size), backbone=settings)
    backbone = setting.build().to(device)
    static = static_net(setting, backbone)
    own = {} if kind not in TORCH_KINDS else dict(
        quantized=load_scales(card['quantized'])) if computes == 'int8' else dict(
        precision=computes)
    rate = _realised_rate(net, batches)
    with tempfile.TemporaryDirectory() as other, torch.no_grad():
        made = deployed_form(static, kind, image_size=size, batch=batch, **own)
        nets: dict[str, Any] = dict(
            dynamic=net.infer, static=open_as(made, kind, other, size, batch, precision).infer)
        if compile_static:
            dtype = DTYPES.get(computes, torch.float32)
            images = batches[0].to(dtype, memory_format=torch.channels_last)
            compiled = compiled_static(setting, backbone.to(dtype), images)
            nets['compiled'] = lambda x: compiled(images)
        found = static_peers(static, batches[0]) if peers else None
        for key, program in (found.programs if found else {}).items():
            nets[key] = lambda x, run=program: run()
        times = time_nets(nets, batches, warmup, repeats, settle=peers or compile_static)

    def per_image(name, prefix=''):
        return {f'{prefix}{key}_ms': getattr(times[name].stats, f'{key}_ms') / batch
                for key in ('mean', 'p50', 'p90', 'p99')}
    shapes = [block.shape for stage in backbone.stages() for block in stage]
    row = dict(network=name, paradigm=setting.paradigm, batch=batch, size=size,
               granularity=stage_granularity(shapes), realised_rate=rate, **per_image('dynamic'))
    for key in nets:
        if key != 'dynamic':
            row.update(per_image(key, f'{key}_'))
    row.update(fastest_statics({key: times['dynamic'].ms / own.ms for key, own in times.items()
                                if key != 'dynamic'}, computes, peers))
    if found is not None:
        row.update(runtimes=found.versions, missing=found.missing)
    return row


def artefact_precision(card: Mapping[str, Any], precision: str | None) -> str:
    """What an artefact computes in, read so."""
    return precision or PRECISION_NAMES[card['computes_in']]


def _realised_rate(net, batches):
    """The mean over images and masks of the share of units that are on."""
    if not net.card['decisions']:
        return None
    return float(np.mean([mask.float().mean() for x in batches for mask in net(x)[1].values()]))
