"""Time whole LAUD backbones beside their static nets, at forced rates."""
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
import torch

from laud_mm.latency.measure import LatencyStats, Timer, measure_interleaved
from laud_mm.latency.sweep import Setting
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet
from laud_mm.models.dynamic import force_rate, replay
from laud_mm.specs.arguments import check_choice, check_fraction
from laud_mm.specs.networks import REGNETS, RESNETS, best_spatial_granularity

MEASURED_COLUMNS = ('network', 'paradigm', 'granularity', 'realised_rate', 'batch',
                    'flops_fraction', 'static_p50_ms', 'compiled_p50_ms', 'p50_ms', 'p90_ms',
                    'p99_ms', 'ratio_to_fastest_static')
PRECISIONS = ('fp32', 'tf32', 'fp16', 'bf16', 'amp_fp16', 'amp_bf16')
_WHOLE = dict(fp16=torch.float16, bf16=torch.bfloat16)
LAYOUTS = dict(channels_last=torch.channels_last, contiguous=torch.contiguous_format)


@dataclass(frozen=True)
class BenchSetting:
    """One network to time.

    Attributes:
        network (str): 'resnet50' and such; a convolutional one.
        paradigm (str | None): As of the backbone.
        rate (float): Share of units on, exactly, at random places.
        batch (int): Images.
        granularity (tuple[int, ...] | None): S or G per stage; None: the papers' best.
        image_size (tuple[int, int]): Height and width.
    """
    network: str
    paradigm: Optional[str]
    rate: float
    batch: int
    granularity: Optional[Tuple[int, ...]] = None
    image_size: Tuple[int, int] = (224, 224)

    def __post_init__(self):
        check_choice('network', self.network, (*RESNETS, *REGNETS))
        check_fraction('rate', self.rate)
        if self.batch < 1:
            raise ValueError(f'batch must be a positive int, got {self.batch!r}')

    def build(self, **kwargs):
        """The backbone, with random weights, in evaluation."""
        kwargs = dict(dict(paradigm=self.paradigm), **kwargs)
        spatial = best_spatial_granularity(self.network)
        if self.granularity and self.paradigm == 'channel':
            kwargs.update(channel_granularity=self.granularity)
        else:
            kwargs.update(spatial_granularity=self.granularity or spatial)
        if self.network in RESNETS:
            return LAUDResNet(RESNETS[self.network], **kwargs).eval()
        return LAUDRegNet(self.network, **kwargs).eval()

    def prediction(self):
        """The same as a `Setting` of the predictor."""
        return Setting(self.network, self.paradigm, self.rate, 'here', self.batch,
                       self.granularity, image_size=tuple(self.image_size))


@contextmanager
def run_precision(precision, device):
    """Run in a precision: 'fp32', 'tf32' (CUDA), 'amp_fp16' or 'amp_bf16' (autocast).

    'fp16' and 'bf16' mean that the net itself is in that type.
    """
    check_choice('precision', precision, PRECISIONS)
    device = torch.device(device).type
    if precision == 'tf32' and device != 'cuda':
        raise ValueError(f"precision 'tf32' needs a CUDA device, got {device!r}")
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    dtypes = dict(amp_fp16=torch.float16, amp_bf16=torch.bfloat16)
    try:
        with torch.autocast(device, dtypes[precision]) if precision in dtypes else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = conv


def measure_setting(setting, device='cpu', precision='fp32', layout='channels_last',
                    compile_static=False, warmup=5, repeats=30):
    """Time a network and its static counterpart in turn.

    Args:
        setting (BenchSetting): What to time. Maskers run and count; their
            decisions are replaced by random ones of the exact rate.
        device (str): Where.
        precision (str): See `run_precision`.
        layout (str): 'channels_last' or 'contiguous' weights and images.
        compile_static (bool): Also time the static net under `torch.compile`,
            weights frozen.
        warmup (int): Untimed runs of each.
        repeats (int): Timed runs of each.

    Returns:
        dict: Latencies in ms per image: `p50_ms` and others of the dynamic
        net, `static_p50_ms`, `compiled_p50_ms`, per stage `stages`; ratios are
        medians of runs that were timed together.
    """
    torch.manual_seed(0)
    device = torch.device(device)
    memory = LAYOUTS[check_choice('layout', layout, tuple(LAYOUTS))]
    dtype = _WHOLE.get(precision, torch.float32)
    net = setting.build().to(device, dtype, memory_format=memory)
    x = torch.randn(setting.batch, 3, *setting.image_size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=memory)
    with torch.no_grad(), run_precision(precision, device):
        with force_rate(net, setting.rate):
            net(x)
        cost, decisions = net.record.cost(), net.record.decisions

        def static():
            with net.as_static():
                net(x)

        def dynamic():
            with replay(net, decisions):
                net(x)
        programs = dict(dynamic=dynamic, static=static)
        if compile_static:
            compiled = compiled_static(setting, net, memory)
            programs['compiled'] = lambda: compiled(x)
        stats, samples = measure_interleaved(programs, device, warmup, repeats)
        stages = {name: stage_latencies(net, programs[name], device, max(repeats // 3, 3))
                  for name in ('dynamic', 'static')}

    def per_image(name):
        return {f'{key}_ms': getattr(stats[name], f'{key}_ms') / setting.batch
                for key in ('mean', 'p50', 'p90', 'p99')}
    ratios = {name: float(np.median(np.divide(samples['dynamic'], samples[name])))
              for name in samples if name != 'dynamic'}
    row = dict(network=setting.network, paradigm=setting.paradigm, rate=setting.rate,
               batch=setting.batch, size=list(setting.image_size),
               granularity=setting.prediction().about()['granularity'],
               realised_rate=cost.mean_rate.item(), flops_fraction=cost.fraction.mean().item(),
               **per_image('dynamic'),
               **{f'{prefix}_{key}': value for name, prefix in (
                   ('static', 'static'), ('compiled', 'compiled')) if name in stats
                  for key, value in per_image(name).items()},
               ratio_to_static=ratios['static'], ratio_to_fastest_static=max(ratios.values()))
    row['stages'] = [dict(stage=i + 1, p50_ms=d / setting.batch, static_p50_ms=s / setting.batch)
                     for i, (d, s) in enumerate(zip(stages['dynamic'], stages['static']))]
    return row


def compiled_static(setting, net, memory):
    """The static net with the same weights under `torch.compile`, weights frozen."""
    from torch._inductor import config
    static = setting.build(paradigm=None, execution='masked')
    static.load_state_dict(net.state_dict(), strict=False)
    weight = next(net.parameters())
    static = static.to(weight.device, weight.dtype, memory_format=memory)
    config.freezing = True
    return torch.compile(static, mode='max-autotune' if weight.is_cuda else 'default')


def stage_latencies(net, run, device, repeats):
    """Median latency in ms of every stage of a backbone."""
    timer, marks, samples = Timer(device), [], []
    # Marks, not nested timings: a stage ends where the next begins.
    handles = [stage[0].register_forward_pre_hook(lambda *_: marks.append(timer.mark()))
               for stage in net.stages()]
    handles.append(net.register_forward_hook(lambda *_: marks.append(timer.mark())))
    try:
        for _ in range(repeats + 1):
            marks.clear()
            run()
            samples.append([timer.between_ms(a, b) for a, b in zip(marks, marks[1:])])
    finally:
        for handle in handles:
            handle.remove()
    return np.median(samples[1:], axis=0).tolist()


def compare_setting(setting, predictor, warmup=5, repeats=30):
    """Measure a network on the machine of a calibration, and predict it.

    Args:
        setting (BenchSetting): The network.
        predictor (CalibratedPredictor): Made on this machine.
        warmup (int): Untimed runs of each net.
        repeats (int): Timed runs of each net.

    Returns:
        dict: Latencies per image in ms, `error` = predicted / measured - 1.
    """
    measured = measure_setting(setting, predictor.stamp['device'], predictor.precision,
                               warmup=warmup, repeats=repeats)
    prediction = setting.prediction()
    report = predictor.predict(prediction.spec(), setting.rate, setting.batch)
    row = dict(network=setting.network, paradigm=setting.paradigm, rate=setting.rate,
               batch=setting.batch, granularity=measured['granularity'],
               measured_ms=measured['p50_ms'], predicted_ms=report.latency_per_image_ms,
               static_measured_ms=measured['static_p50_ms'],
               static_predicted_ms=report.static_latency_per_image_ms)
    row['error'] = row['predicted_ms'] / row['measured_ms'] - 1
    row['static_error'] = row['static_predicted_ms'] / row['static_measured_ms'] - 1
    row['ratio_measured'] = measured['ratio_to_static']
    row['ratio_predicted'] = report.ratio
    row['stages'] = [dict(m, predicted_ms=p['latency_per_image_ms'],
                          static_predicted_ms=p['static_latency_per_image_ms'])
                     for m, p in zip(measured['stages'], report.stages())]
    return row
