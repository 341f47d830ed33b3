"""LatencyHook: what the backbone computed on a validation set, and how long it took."""
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner.amp import autocast

from laud_mm.latency.analytic import check_batch
from laud_mm.latency.calibrated import load_predictor
from laud_mm.latency.cuda_graphs import graphed
from laud_mm.latency.measure import device_stamp, measure_interleaved
from laud_mm.latency.plots import plot_report
from laud_mm.latency.report import BackboneStatistics, predict_report, report_metrics, round_size
from laud_mm.models.find import find_backbone, find_backbones
from laud_mm.registry import HOOKS
from laud_mm.utils.files import write_json


@HOOKS.register_module()
class LatencyHook(Hook):
    """Report backbone FLOPs, rates and latency of every validation and test run.

    FLOPs and rates are averaged over all images of the set; where an image is seen
    in several views (test-time augmentation, sliding windows), FLOPs and latency are
    of all of them together. Latency is measured on the
    images themselves: the backbone alone, beside the same weights run as the
    static net, the two in turn, after a warm-up of each input shape (in steps
    of 32 pixels). Latency on other devices is predicted from the rates that
    the images showed, each image size by itself. The figures go to the metrics
    (`backbone_latency_measured_ms`, `backbone_latency_static_ms`,
    `backbone_latency_ratio`, `backbone_flops_g`, `backbone_flops_static_g`,
    `backbone_flops_fraction`, `backbone_rate`, and for every device
    `backbone_latency_predicted_ms/<device>`, `..._static_ms/<device>` and
    `..._ratio/<device>`), so to the log, the visualizer and `save_best`, and
    with the figures of every block to a JSON file and a plot. Of a model with several
    LAUD backbones that ran, each has metrics and files of its own, named after it.

    Args:
        interval (int): Time every interval-th batch; 0 times none.
        warmup (int): Untimed runs of each net per such shape.
        repeats (int): Timed runs of each net per timed batch, averaged.
        out_dir (str, optional): Folder of the JSON files and plots; default:
            `latency` in the run's log folder.
        devices (str | Sequence[str]): Devices to predict for: names of the
            hardware table, device files or calibration files.
        batch (int, optional): Images per batch on those devices; default: as
            in the evaluation.
        backbone (str, optional): Name of the backbone in the model, such as
            'student.backbone'; default: all that run in the evaluation.

    Raises:
        ValueError: For a device that is not known, or an argument out of its range.
    """
    priority = 'NORMAL'

    def __init__(self, interval: int = 1, warmup: int = 2, repeats: int = 1,
                 out_dir: str | None = None, devices: str | Sequence[str] = (),
                 batch: int | None = None, backbone: str | None = None):
        for field, value, low in (('interval', interval, 0), ('warmup', warmup, 0),
                                  ('repeats', repeats, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f'{field} must be an int >= {low}, got {value!r}')
        self.interval, self.warmup, self.repeats = interval, warmup, repeats
        if batch is not None:
            check_batch(batch)
        self.out_dir, self.batch, self.backbone = out_dir, batch, backbone
        names = [devices] if isinstance(devices, str) else devices
        # Made here, so that an unknown device stops a run before it starts.
        self.predictors = [load_predictor(name) for name in names]
        self._watched: list[_Watched] = []

    def _start(self, runner):
        self._stop()  # an evaluation that failed may have left its hooks
        if self.backbone is None:
            found = find_backbones(runner.model, 'LatencyHook')
        else:
            found = {self.backbone: find_backbone(runner.model, 'LatencyHook', self.backbone)}
        for backbone in found.values():
            for predictor in self.predictors:
                predictor.predict(backbone.op_specs((224, 224)))  # refuses now what it cannot
        self._watched = [_Watched(name, backbone) for name, backbone in found.items()]

    def _stop(self):
        for watched in self._watched:
            watched.handle.remove()

    def _after_batch(self, batch_idx, outputs, loop):
        for watched in self._watched:
            inputs, watched.inputs = watched.inputs, []
            views = sum(map(len, inputs))
            # An image of the set may have been seen in several views.
            images = len(outputs) if isinstance(outputs, (list, tuple)) and outputs else views
            watched.statistics.images += images if views else 0
            if views and self.interval and batch_idx % self.interval == 0:
                with torch.no_grad(), autocast(enabled=getattr(loop, 'fp16', False)):
                    watched.time(inputs, images, self.warmup, self.repeats)

    def _finish(self, runner, mode, metrics):
        self._stop()
        merged = [(watched, watched.statistics.over_ranks()) for watched in self._watched]
        ran = [pair for pair in merged if pair[1].views]
        if not ran:
            raise ValueError('no LAUD backbone ran in the evaluation: LatencyHook has nothing to '
                             f'report of {", ".join(w.name for w in self._watched)}')
        for watched, statistics in ran:
            prefix = f'{watched.name}/' if len(ran) > 1 else ''
            report = self._report(watched, statistics, getattr(runner, f'{mode}_loop'))
            new = {prefix + key: value for key, value in report_metrics(report).items()}
            runner.message_hub.update_scalars({f'{mode}/{k}': v for k, v in new.items()})
            if metrics is not None:
                metrics.update(new)
            if is_main_process():
                name = 'test' if mode == 'test' else f'val_iter_{runner.iter}'
                name += f'_{watched.name}' * (len(ran) > 1)
                folder = Path(self.out_dir or Path(runner.log_dir, 'latency'))
                write_json(report, folder / f'{name}.json')
                plot_report(report, folder / f'{name}.png')

    def _report(self, watched, statistics, loop):
        weight = next(watched.backbone.parameters())
        precision = 'amp' if getattr(loop, 'fp16', False) else str(weight.dtype)
        report = statistics.report(dict(device_stamp(weight.device), precision=precision,
                                        execution=watched.backbone.execution))
        if self.predictors:
            batch = self.batch or watched.seen_batch
            report['predicted'] = {
                p.name: predict_report(statistics, p, watched.backbone.op_specs, batch)
                for p in self.predictors}
        return report

    def before_val_epoch(self, runner):
        self._start(runner)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._after_batch(batch_idx, outputs, runner.val_loop)

    def after_val_epoch(self, runner, metrics=None):
        self._finish(runner, 'val', metrics)

    def before_test_epoch(self, runner):
        self._start(runner)

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._after_batch(batch_idx, outputs, runner.test_loop)

    def after_test_epoch(self, runner, metrics=None):
        self._finish(runner, 'test', metrics)


class _Watched:
    """One backbone in one evaluation."""

    def __init__(self, name, backbone):
        self.name, self.backbone = name, backbone
        self.statistics, self.seen_batch = BackboneStatistics(), 1
        self.inputs, self._warm, self._timing = [], set(), False
        self._runs = {}
        self.handle = backbone.register_forward_hook(self._watch)

    def _watch(self, backbone, args, outputs):
        if not self._timing:
            images = args[0]
            self.seen_batch = max(self.seen_batch, len(images))
            self.statistics.add_cost(backbone.record.cost(), images.shape[-2:])
            self.inputs.append(images)

    def time(self, inputs, images, warmup, repeats):
        """Time the backbone on all views of a batch, per image of the set."""
        self._timing, record = True, self.backbone.record
        try:
            times = [self._time(x, warmup, repeats) for x in inputs]
        finally:
            # What the images decided stays to be seen by others, such as visualisers.
            self._timing, self.backbone.record = False, record
        self.statistics.add_latency(*(sum(own) / images for own in zip(*times)))

    def _time(self, x, warmup, repeats):
        bucket = (len(x), *round_size(x.shape[-2:]))
        warmup = 0 if bucket in self._warm else warmup
        self._warm.add(bucket)
        # On a GPU as graphs: else the host would be timed.
        self._runs = self._runs or dict(dynamic=graphed(self.backbone, x.device),
                                        static=graphed(self._run_static, x.device))
        stats, _ = measure_interleaved(
            {name: partial(run, x) for name, run in self._runs.items()},
            x.device, warmup, repeats, first=self.statistics.timed)
        return stats['dynamic'].mean_ms, stats['static'].mean_ms

    def _run_static(self, x):
        with self.backbone.as_static():
            return self.backbone(x)
