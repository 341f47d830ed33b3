"""LatencyHook: what the backbone computed on a validation set, and how long it took."""
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner.amp import autocast

from laud_mm.latency.analytic import check_batch
from laud_mm.latency.calibrated import load_predictor
from laud_mm.latency.measure import device_stamp, measure_interleaved
from laud_mm.latency.plots import plot_report
from laud_mm.latency.report import BackboneStatistics, predict_report, report_metrics, round_size
from laud_mm.models.find import find_backbone
from laud_mm.registry import HOOKS
from laud_mm.utils.files import write_json


@HOOKS.register_module()
class LatencyHook(Hook):
    """Report backbone FLOPs, rates and latency of every validation and test run.

    FLOPs and rates are averaged over all images. Latency is measured on the
    images themselves: the backbone alone, beside the same weights run as the
    static net, the two in turn, after a warm-up of each input shape (in steps
    of 32 pixels). Latency on other devices is predicted from the rates that
    the images showed, each image size by itself. The figures go to the metrics
    (`backbone_latency_measured_ms`, `backbone_latency_static_ms`,
    `backbone_latency_ratio`, `backbone_flops_g`, `backbone_flops_static_g`,
    `backbone_flops_fraction`, `backbone_rate`, and for every device
    `backbone_latency_predicted_ms/<device>`, `..._static_ms/<device>` and
    `..._ratio/<device>`), so to the log, the visualizer and `save_best`, and
    with the figures of every block to a JSON file and a plot.

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

    Raises:
        ValueError: For a device that is not known, or an argument out of its range.
    """
    priority = 'NORMAL'

    def __init__(self, interval: int = 1, warmup: int = 2, repeats: int = 1,
                 out_dir: str | None = None, devices: str | Sequence[str] = (),
                 batch: int | None = None):
        for field, value, low in (('interval', interval, 0), ('warmup', warmup, 0),
                                  ('repeats', repeats, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f'{field} must be an int >= {low}, got {value!r}')
        self.interval, self.warmup, self.repeats = interval, warmup, repeats
        if batch is not None:
            check_batch(batch)
        self.out_dir, self.batch = out_dir, batch
        names = [devices] if isinstance(devices, str) else devices
        # Made here, so that an unknown device stops a run before it starts.
        self.predictors = [load_predictor(name) for name in names]
        self._handle, self._timing = None, False
        self._inputs: list[torch.Tensor] = []

    def _start(self, runner):
        self._stop()  # an evaluation that failed may have left its hook
        self._backbone, self._seen_batch = find_backbone(runner.model, 'LatencyHook'), 1
        for predictor in self.predictors:
            predictor.predict(self._backbone.op_specs((224, 224)))  # refuses now what it cannot
        self._statistics, self._warm = BackboneStatistics(), set()
        self._handle = self._backbone.register_forward_hook(self._watch)

    def _stop(self):
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._inputs = None, []

    def _watch(self, backbone, args, outputs):
        if not self._timing:
            images = args[0]
            self._seen_batch = max(self._seen_batch, len(images))
            self._statistics.add_cost(backbone.record.cost(), images.shape[-2:])
            self._inputs.append(images)

    def _time_batch(self, batch_idx, loop):
        inputs, self._inputs = self._inputs, []
        if not self.interval or batch_idx % self.interval:
            return
        self._timing, record = True, self._backbone.record
        try:
            with torch.no_grad(), autocast(enabled=getattr(loop, 'fp16', False)):
                for x in inputs:
                    self._time(x)
        finally:
            # What the images decided stays to be seen by others, such as visualisers.
            self._timing, self._backbone.record = False, record

    def _time(self, x):
        bucket = (len(x), *round_size(x.shape[-2:]))
        warmup = 0 if bucket in self._warm else self.warmup
        self._warm.add(bucket)
        stats, _ = measure_interleaved(
            dict(dynamic=lambda: self._backbone(x), static=lambda: self._run_static(x)),
            x.device, warmup, self.repeats, first=self._statistics.timed)
        self._statistics.add_latency(stats['dynamic'].mean_ms / len(x),
                                     stats['static'].mean_ms / len(x))

    def _run_static(self, x):
        with self._backbone.as_static():
            return self._backbone(x)

    def _finish(self, runner, mode, metrics):
        self._stop()
        statistics = self._statistics.over_ranks()
        weight, loop = next(self._backbone.parameters()), getattr(runner, f'{mode}_loop')
        precision = 'amp' if getattr(loop, 'fp16', False) else str(weight.dtype)
        report = statistics.report(dict(device_stamp(weight.device), precision=precision,
                                        execution=self._backbone.execution))
        if self.predictors:
            batch = self.batch or self._seen_batch
            report['predicted'] = {p.name: predict_report(statistics, p, self._backbone.op_specs,
                                                          batch) for p in self.predictors}
        new = report_metrics(report)
        runner.message_hub.update_scalars({f'{mode}/{k}': v for k, v in new.items()})
        if metrics is not None:
            metrics.update(new)
        if is_main_process():
            name = 'test' if mode == 'test' else f'val_iter_{runner.iter}'
            folder = Path(self.out_dir or Path(runner.log_dir, 'latency'))
            write_json(report, folder / f'{name}.json')
            plot_report(report, folder / f'{name}.png')

    def before_val_epoch(self, runner):
        self._start(runner)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._time_batch(batch_idx, runner.val_loop)

    def after_val_epoch(self, runner, metrics=None):
        self._finish(runner, 'val', metrics)

    def before_test_epoch(self, runner):
        self._start(runner)

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._time_batch(batch_idx, runner.test_loop)

    def after_test_epoch(self, runner, metrics=None):
        self._finish(runner, 'test', metrics)

