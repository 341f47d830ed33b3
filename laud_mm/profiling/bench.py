"""Time whole LAUD backbones beside their static nets, at forced rates."""
import copy
import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from laud_mm.deploy import CompiledBackbone, deploy
from laud_mm.latency.cuda_graphs import graphed
from laud_mm.latency.measure import Timer, keep_freed_memory, measure_interleaved
from laud_mm.latency.sweep import Setting, granularity_arguments, stage_granularity
from laud_mm.models.backbones.block import is_channels_last
from laud_mm.models.dynamic import force_rate, replay
from laud_mm.models.find import find_backbone
from laud_mm.registry import MODELS
from laud_mm.specs import NETWORKS, Rates, backbone_spec, family_of
from laud_mm.specs.arguments import check_choice, check_fraction
from laud_mm.specs.bottleneck import MASKS

from .make_plan import block_inputs
from .peers import PRECISION_OF, static_peers
from .probe import DriftProbe

MEASURED_COLUMNS = ('network', 'paradigm', 'granularity', 'realised_rate', 'batch',
                    'flops_fraction', 'static_p50_ms', 'compiled_p50_ms', 'p50_ms', 'p90_ms',
                    'p99_ms', 'ratio_to_fastest_static')
DEPLOYED_COLUMNS = ('deployed_rate', 'deployed_p50_ms', 'deployed_ratio_to_fastest_static')
PEER_COLUMNS = ('fastest_static', 'fastest_of_all', 'ratio_to_fastest_of_all')
PRECISIONS = ('fp32', 'tf32', 'fp16', 'bf16', 'amp_fp16', 'amp_bf16')
_WHOLE = dict(fp16=torch.float16, bf16=torch.bfloat16)
OWN_STATICS = ('static', 'compiled')  # run in the precision of the dynamic net
LAYOUTS = dict(channels_last=torch.channels_last, contiguous=torch.contiguous_format)


@dataclass(frozen=True)
class BenchSetting:
    """One network to time.

    Attributes:
        network (str): One of `NETWORKS`. With `backbone` a name for it.
        paradigm (str | None): As of the backbone.
        rate (float): Share of units on, exactly, at random places.
        batch (int): Images.
        granularity (tuple[int, ...] | None): S or G per stage; None: the papers' best.
        image_size (tuple[int, int]): Height and width.
        block_rates (dict[str, float] | None): A rate for each block instead, such as those
            that a trained network had, see `recorded_rates`.
        backbone (dict[str, Any] | None): Config of a backbone, instead of network, paradigm
            and granularity.
    """
    network: str
    paradigm: str | None
    rate: float
    batch: int
    granularity: tuple[int, ...] | None = None
    image_size: tuple[int, int] = (224, 224)
    block_rates: dict[str, float] | None = None
    backbone: dict[str, Any] | None = None

    def __post_init__(self):
        if self.backbone is None:
            check_choice('network', self.network, NETWORKS)
        else:
            family_of(self.backbone)
        check_fraction('rate', self.rate)
        if self.batch < 1:
            raise ValueError(f'batch must be a positive int, got {self.batch!r}')

    def build(self, **kwargs):
        """The backbone, with random weights, in evaluation."""
        if self.backbone is not None:
            return MODELS.build(dict(self.backbone, init_cfg=None, **kwargs)).eval()
        family = NETWORKS[self.network]
        arguments = {**family.defaults(self.network), 'paradigm': self.paradigm,
                     **granularity_arguments(self.paradigm, self.granularity)}
        return MODELS.build({**arguments, 'type': f'laud_mm.{family.backbone}', **kwargs}).eval()

    def spec(self):
        """Op specs of the network."""
        if self.backbone is not None:
            return backbone_spec(self.backbone, tuple(self.image_size))
        return Setting(self.network, self.paradigm, self.rate, 'here', self.batch,
                       self.granularity, image_size=tuple(self.image_size)).spec()


@contextmanager
def run_precision(precision, device):
    """Run in a precision: 'fp32', 'tf32' (CUDA), 'amp_fp16' or 'amp_bf16' (autocast).

    'fp16' and 'bf16' mean that the net itself is in that type.
    """
    check_choice('precision', precision, PRECISIONS)
    device = torch.device(device).type
    if precision == 'tf32' and device != 'cuda':
        raise ValueError(f"precision 'tf32' needs a CUDA device, got {device!r}")
    dtypes = dict(amp_fp16=torch.float16, amp_bf16=torch.bfloat16)
    with _tf32(precision == 'tf32'), (torch.autocast(device, dtypes[precision])
                                      if precision in dtypes else nullcontext()):
        yield


@contextmanager
def _tf32(allowed):
    """Let float32 products be TF32 on a GPU, or not."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    owners, name, value = (matmul, cudnn), 'allow_tf32', allowed
    try:
        before = [getattr(owner, name) for owner in owners]
    except RuntimeError:  # the newer names were used, and the older ones must not be any more
        owners, name = (matmul, cudnn.conv, cudnn.rnn), 'fp32_precision'
        value = 'tf32' if allowed else 'ieee'
        before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, value)
        yield
    finally:
        for owner, old in zip(owners, before):
            setattr(owner, name, old)


@dataclass(frozen=True)
class TimedBackbone:
    """Latencies of a backbone and its static net, timed in turn.

    Attributes:
        stats (dict[str, LatencyStats]): Per batch, by program: 'dynamic', 'static', and what
            else was asked for.
        ratios (dict[str, float]): Dynamic over each other program, the median
            over runs that were timed together.
        cost (ActivationCost): What was decided.
        programs (dict[str, Callable]): The backbone's own, as they run without a CUDA graph.
        deployed_ratios (dict[str, float]): The deployed net over each static one, likewise;
            empty where none was timed.
        without_maskers (float | None): Dynamic less its maskers, over static, likewise;
            where maskers were timed.
    """
    stats: dict
    ratios: dict
    cost: Any
    programs: dict
    deployed_ratios: dict
    without_maskers: float | None = None


def time_backbone(net, x, rate, warmup=5, repeats=30, statics=None, time_maskers=False,
                  settle=False, deployed=None):
    """Time a backbone at an exact forced rate, and its static net; on a GPU as CUDA graphs.

    Args:
        net (LAUDBackbone): In evaluation. Its maskers run and count; random
            decisions of the rate replace theirs.
        x (Tensor): (N, 3, H, W) images.
        rate (float | dict[str, float]): Share of units on, see `force_rate`.
        warmup (int): Untimed runs of each.
        repeats (int): Timed runs of each.
        statics (dict[str, Callable], optional): Other forms of the static net to time too, by
            name: functions without arguments.
        time_maskers (bool): Also time the maskers alone.
        settle (bool): See `measure_interleaved`.
        deployed (Callable, optional): A deployed form of the net that decides likewise, a
            function without arguments, to time too.

    Returns:
        TimedBackbone: The figures.
    """
    with force_rate(net, rate):
        net(x)
    cost, decisions = net.record.cost(), net.record.decisions

    def dynamic(x):
        with replay(net, decisions):
            return net(x)

    def static(x):
        with net.as_static():
            return net(x)
    own = dict(dynamic=dynamic, static=static)
    if time_maskers:
        inputs = block_inputs(net, x)
        own['maskers'] = lambda x: [block.masker(y) for block, y in inputs]
    programs = {name: partial(graphed(run, x.device), x) for name, run in own.items()}
    programs.update(statics or {})
    if deployed:
        programs['deployed'] = deployed
    stats, samples = measure_interleaved(programs, x.device, warmup, repeats, settle=settle)

    def ratios_of(form):
        return {name: float(np.median(np.divide(samples[form], own)))
                for name, own in samples.items() if name not in ('dynamic', 'deployed', 'maskers')}
    without = float(np.median((np.array(samples['dynamic']) - samples['maskers'])
                              / samples['static'])) if time_maskers else None
    return TimedBackbone(stats, ratios_of('dynamic'), cost,
                         {name: partial(run, x) for name, run in own.items()},
                         ratios_of('deployed') if deployed else {}, without)


def measure_ratio(model, images, rate=0.5, warmup=3, repeats=10):
    """How long a backbone takes here, over its static net, the two timed in turn.

    Args:
        model (nn.Module): A LAUD backbone, or a model with one inside, in evaluation.
        images (Tensor): (N, 3, H, W), on the model's device.
        rate (float): Share of units on, exactly, at random places.
        warmup (int): Untimed runs of each.
        repeats (int): Timed runs of each.

    Returns:
        float: The median of ratios; below 1 skipping pays.
    """
    keep_freed_memory()
    with torch.no_grad():
        timed = time_backbone(find_backbone(model, 'measure_ratio'), images,
                              check_fraction('rate', rate), warmup, repeats)
    return timed.ratios['static']


def measure_setting(setting, device='cpu', precision='fp32', layout='channels_last',
                    compile_static=False, warmup=5, repeats=30, plan=None, peers=False,
                    deployed=False):
    """Time a network and its static counterpart in turn.

    Args:
        setting (BenchSetting): What to time.
        device (str): Where.
        precision (str): See `run_precision`.
        layout (str): 'channels_last' or 'contiguous' weights and images.
        compile_static (bool): Also time the static net under `torch.compile`,
            weights frozen.
        plan (str, optional): A plan file: the dynamic net runs with execution='auto' by it,
            and its maskers are timed too.
        warmup (int): Untimed runs of each.
        repeats (int): Timed runs of each.
        peers (bool): Also time the static net in other runtimes, on the CPU, see `static_peers`.
        deployed (bool): Also time the deployed net, compiled. Its maskers decide for the same
            number of units in each block, see `decide_as_often`.

    Returns:
        dict: Latencies in ms per image: `p50_ms` and others of the dynamic
        net, `static_p50_ms` (the framework's convolutions, norms folded),
        `compiled_p50_ms`, those of `peers` such as `openvino_fp32_p50_ms`, per stage `stages`;
        `ratios` to each are
        medians of runs that were timed together. `fastest_static` names the fastest
        static net of the same precision, `fastest_of_all` that of any precision. With `peers`
        there are `runtimes`, their versions, and `missing`, what could not be timed and why.
        With `deployed` also `deployed_p50_ms`, `deployed_rate` and `deployed_ratios`.

    Raises:
        ValueError: If peers are asked for elsewhere than on the CPU.
    """
    if peers and torch.device(device).type != 'cpu':
        raise ValueError(f"peers run on the CPU: device must be 'cpu' with peers, got {device!r}")
    torch.manual_seed(0)
    keep_freed_memory()
    device = torch.device(device)
    memory = LAYOUTS[check_choice('layout', layout, tuple(LAYOUTS))]
    dtype = _WHOLE.get(precision, torch.float32)
    with torch.no_grad(), run_precision(precision, device):
        own = dict(plan=plan) if plan else {}  # a config may have a plan of its own
        net = setting.build(**own).to(device, dtype, memory_format=memory)
        x = torch.randn(setting.batch, net.in_channels, *setting.image_size, device=device,
                        dtype=dtype)
        x = x.contiguous(memory_format=memory)
        statics, others = {}, static_peers(static_net(setting, net), x) if peers else None
        if compile_static:
            statics['compiled'] = partial(compiled_static(setting, net, x), x)
        if others is not None:
            statics.update(others.programs)
        rate = setting.rate if setting.block_rates is None else setting.block_rates
        run_deployed = deployed_rate = None
        if deployed:
            run_deployed, deployed_rate = deployed_net(net, x, rate)
        timed = time_backbone(net, x, rate, warmup, repeats, statics, plan is not None,
                              settle=bool(peers), deployed=run_deployed)
        dense = plan and dense_blocks(net, x, timed.cost)
        stages = {name: stage_latencies(net, timed.programs[name], device, max(repeats // 3, 3))
                  for name in ('dynamic', 'static')}

    def per_image(name, prefix=''):
        return {f'{prefix}{key}_ms': getattr(timed.stats[name], f'{key}_ms') / setting.batch
                for key in ('mean', 'p50', 'p90', 'p99')}
    shapes = [block.shape for stage in net.stages() for block in stage]
    realised = timed.cost.mean_rate.item()
    row = dict(network=setting.network, paradigm=setting.paradigm,
               rate=setting.rate if setting.block_rates is None else realised,
               batch=setting.batch, size=list(setting.image_size),
               granularity=stage_granularity(shapes),
               realised_rate=realised,
               flops_fraction=timed.cost.fraction.mean().item(), **per_image('dynamic'))
    for name in timed.ratios:
        row.update(per_image(name, f'{name}_'))
    row.update(fastest_statics(timed.ratios, precision, others is not None),
               block_rates=[mean_rates(rates) for rates in timed.cost.block_rates])
    if others is not None:
        row.update(runtimes=others.versions, missing=others.missing)
    if deployed:
        row.update(per_image('deployed', 'deployed_'), deployed_rate=deployed_rate,
                   deployed_ratios=timed.deployed_ratios,
                   deployed_ratio_to_fastest_static=timed.deployed_ratios[row['fastest_static']])
    if plan is not None:
        row.update(per_image('maskers', 'maskers_'), dense_blocks=dense,
                   ratio_to_static_without_maskers=timed.without_maskers)
    row['stages'] = [dict(stage=i + 1, p50_ms=d / setting.batch, static_p50_ms=s / setting.batch)
                     for i, (d, s) in enumerate(zip(stages['dynamic'], stages['static']))]
    return row


def deployed_net(net, x, rate):
    """A compiled deployed net at a rate that is forced through its maskers' weights.

    Returns:
        tuple[Callable, float]: A function without arguments that runs it on `x`, and the mean
        rate that it has there.
    """
    with force_rate(net, rate):
        net(x)
    own = copy.deepcopy(net)
    decide_as_often(own, x, net.record.decisions)
    own(x)
    torch._dynamo.reset()
    compiled = CompiledBackbone(deploy(own, image_size=x.shape[-2:], batch=len(x)))
    return partial(compiled, x), own.record.cost().mean_rate.item()


@torch.no_grad()
def decide_as_often(net, images, decisions):
    """Give maskers weights by which they decide for as many units as is recorded.

    Logits lie along random directions, so that images and patches differ; thresholds lie between
    the logits of these images. In half precision a count may be missed where logits are near
    each other.

    Args:
        net (LAUDBackbone): A network of convolutions, in evaluation. Its maskers are changed.
        images (Tensor): (N, C, H, W).
        decisions (dict[str, Decision]): From `ActivationRecord.decisions`.
    """
    generator = torch.Generator().manual_seed(0)

    def directions(rows, inputs):
        """(rows, C): orthogonal to the mean of the (M, C) inputs."""
        found = torch.randn(rows, inputs.shape[1], generator=generator).to(inputs)
        if len(inputs) == 1:  # thresholds alone decide
            return torch.zeros_like(found)
        mean = F.normalize(inputs.mean(0), dim=0)
        found -= (found @ mean)[:, None] * mean
        return found / (inputs @ found.t()).std(0, correction=0).clamp(min=1e-6)[:, None]

    def set_masker(block, inputs):  # right before the block decides by it
        for name, masker in block.masker.named_children():
            mask = getattr(decisions[block.shape.name], MASKS[name])
            if name == 'channel':
                layer, values = masker.fc2, masker.features(inputs[0]).float()
                counts = mask.sum(0)  # images in which each group is on
            else:
                layer, values = masker.conv, masker.pool(inputs[0]).float()
                values, counts = values.movedim(1, -1).flatten(0, -2), mask.sum()[None]
            rows = directions(len(counts), values)
            layer.weight.zero_()[:len(counts)] = rows.view_as(layer.weight[:len(counts)])
            margins = values @ layer.weight[:len(counts)].flatten(1).float().t()
            layer.bias.zero_()[:len(counts)] = torch.stack([
                -_threshold(own, int(count)) for own, count in zip(margins.t(), counts)])
    handles = [block.register_forward_pre_hook(set_masker)
               for block in net.blocks() if block.masker is not None]
    try:
        net(images)
    finally:
        for handle in handles:
            handle.remove()


def _threshold(values, count):
    """A value that `count` of the values are above."""
    order = values.sort(descending=True).values
    if count in (0, len(order)):
        return order[0] + 1 if count == 0 else order[-1] - 1
    return order[count - 1:count + 1].mean()


def fastest_statics(ratios, precision, peers):
    """What a row says of ratios to static nets.

    Args:
        ratios (dict[str, float]): By static net: 'static', others of `OWN_STATICS` and peers.
        precision (str): Of the dynamic net.
        peers (bool): Whether nets of other precisions were timed too.
    """
    own = {name: ratio for name, ratio in ratios.items()
           if PRECISION_OF.get(precision) == name.partition('_')[2] or name in OWN_STATICS}
    fastest, of_all = (max(of, key=of.get) for of in (own, ratios))
    found = dict(ratios=ratios, ratio_to_static=ratios['static'], fastest_static=fastest,
                 ratio_to_fastest_static=own[fastest])
    if peers:
        found.update(fastest_of_all=of_all, ratio_to_fastest_of_all=ratios[of_all])
    return found


def dense_blocks(net, x, cost):
    """Names of the blocks that a plan makes dense for the decisions of an `ActivationCost`."""
    decisions = dict(zip(cost.names, cost.decisions))
    return [block.shape.name for block, y in block_inputs(net, x)
            if not net.plan.skips(*block.program(y, plan=net.plan), decisions[block.shape.name], y)]


def mean_rates(rates):
    """Means over the images of a block's rates: a JSON-ready dict."""
    return {name: float(torch.as_tensor(value).mean()) for name, value in vars(rates).items()}


def static_net(setting, net):
    """The static net with the same weights."""
    static = setting.build(paradigm=None, execution='masked')
    static.load_state_dict(net.state_dict(), strict=False)
    return static


def compiled_static(setting, net, x):
    """The static net with the same weights under `torch.compile`, weights frozen.

    Args:
        setting (BenchSetting): The network.
        net (LAUDBackbone): Where its weights come from.
        x (Tensor): (N, C, H, W) images, in the memory format that weights get too.

    Returns:
        Callable: Of images like these; it ran once, and was compiled for them.

    Raises:
        RuntimeError: If it runs uncompiled, or as more graphs than one.
    """
    import torch._inductor as inductor
    memory = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    static = static_net(setting, net).to(x.device, next(net.parameters()).dtype,
                                         memory_format=memory)
    mode = inductor.list_mode_options('max-autotune') if x.is_cuda else {}
    # Earlier nets count towards the limit of recompilations, beyond which nothing is compiled.
    torch._dynamo.reset()
    before = _graphs()
    compiled = torch.compile(static, fullgraph=True, options=dict(mode, freezing=True))
    compiled(x)
    if _graphs() - before != 1:
        raise RuntimeError('the compiled static net must be one compiled graph, got '
                           f'{_graphs() - before}: nothing was timed (is TORCHDYNAMO_DISABLE '
                           'or TORCH_COMPILE_DISABLE set?)')
    return compiled


def _graphs():
    """Graphs that torch.compile has made in this process."""
    return torch._dynamo.utils.counters['stats']['unique_graphs']


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
        dict: Latencies per image in ms; `drift`, how much slower the machine was than
        in the calibration; `error` = drift * predicted / measured - 1.
    """
    probe = DriftProbe(predictor.stamp['device'])
    before = probe.steady()
    measured = measure_setting(setting, predictor.stamp['device'], predictor.precision,
                               warmup=warmup, repeats=repeats)
    drift = math.sqrt(before * probe.steady()) / predictor.stamp['probe_ms']
    # The rates that really were: a block of few units cannot have any rate.
    rates = [Rates(**rates) for rates in measured['block_rates']]
    report = predictor.predict(setting.spec(), rates, setting.batch)
    row = dict(network=setting.network, paradigm=setting.paradigm, rate=setting.rate,
               batch=setting.batch, granularity=measured['granularity'],
               measured_ms=measured['p50_ms'], predicted_ms=report.latency_per_image_ms,
               static_measured_ms=measured['static_p50_ms'],
               static_predicted_ms=report.static_latency_per_image_ms)
    row['drift'] = drift
    row['error'] = drift * row['predicted_ms'] / row['measured_ms'] - 1
    row['static_error'] = drift * row['static_predicted_ms'] / row['static_measured_ms'] - 1
    row['ratio_measured'] = measured['ratio_to_static']
    row['ratio_predicted'] = report.ratio
    row['stages'] = [dict(m, predicted_ms=p['latency_per_image_ms'],
                          static_predicted_ms=p['static_latency_per_image_ms'])
                     for m, p in zip(measured['stages'], report.stages())]
    return row
