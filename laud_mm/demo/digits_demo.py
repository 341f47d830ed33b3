"""Accuracy against latency on the digits: the papers' figure in small."""
import json
import os
import time
from pathlib import Path

import torch
from mmengine.runner import Runner

from laud_mm.latency.measure import device_stamp
from laud_mm.models.find import find_backbone
from laud_mm.utils.files import write_json

from .digits import build_digits
from .digits_report import find_problems, make_table, plot_study
from .study import Study, StudyRun

TARGETS = (0.4, 0.6, 0.8)
CONFIGS = {'layer': 'laud_resnet_digits', 'channel': 'laud_resnet_digits_channel',
           'spatial': 'laud_resnet_digits_spatial'}
STATIC = StudyRun('static', 'laud_resnet_digits_static')


def student_runs(targets=TARGETS):
    """Every paradigm at every target, and the first paradigm without its teacher's loss."""
    runs = [StudyRun(f'{paradigm}_t{round(target * 10):02d}', config, paradigm, target,
                     {'default_hooks.activation.target': target}, STATIC)
            for paradigm, config in CONFIGS.items() for target in targets]
    first = runs[list(targets).index(0.6) if 0.6 in targets else 0]
    return [*runs, StudyRun(f'{first.name}_without_kd', first.config, first.paradigm, first.target,
                            {**first.options, 'model.loss_kd.weight': 0.0}, STATIC)]


def run_digits(config_dir, train_tool, work_dir, data_root='data/digits', jobs=None,
               targets=TARGETS, options=None):
    """Write the data, train what is not trained yet, evaluate, and write table and plot.

    Killed at any moment and run again, it goes on from the last checkpoints.

    Args:
        config_dir (str | Path): Folder of the configs.
        train_tool (str | Path): `tools/train.py`.
        work_dir (str | Path): One folder per training, `digits.json`, `table.md`
            and `accuracy_latency.png`.
        data_root (str | Path): Where the digits are or will be.
        jobs (int, optional): Trainings at a time; default: one per core, at most 4.
        targets (Sequence[float]): Targets of every paradigm.
        options (dict[str, Any], optional): More overrides for every training.

    Returns:
        tuple[str, list[str]]: The table, and what did not come out as it must.
    """
    build_digits(data_root)
    cores = len(os.sched_getaffinity(0))
    study = DigitsStudy(Path(config_dir), Path(train_tool), Path(work_dir), str(data_root),
                        options or {})
    students = student_runs(targets)
    study.train([STATIC], 1, cores)
    jobs = jobs or min(cores, 4)
    study.train(students, jobs, max(cores // jobs, 1))
    rows = [study.evaluate(run) for run in (STATIC, *students)]
    problems = find_problems(rows)
    write_json(dict(stamp=device_stamp('cpu'), rows=rows, problems=problems),
               study.work_dir / 'digits.json')
    table = make_table(rows)
    (study.work_dir / 'table.md').write_text(table + '\n')
    plot_study(rows, study.work_dir / 'accuracy_latency.png')
    return table, problems


class DigitsStudy(Study):
    """The study on the digits."""

    def evaluate(self, run):
        """Evaluate a trained run in both executions; a row of the table, kept in a file."""
        path = self.work_dir / run.name / 'evaluation.json'
        final = self.final(run)
        if path.is_file() and path.stat().st_mtime >= final.stat().st_mtime:
            return json.loads(path.read_text())
        skipping, fractions = evaluate(self.config(run), final, 'skipping')
        masked, _ = evaluate(self.config(run), final, 'masked')
        row = dict(name=run.name, paradigm=run.paradigm, target=run.target,
                   accuracy=skipping['accuracy/top1'], masked_accuracy=masked['accuracy/top1'],
                   flops_fraction_std=fractions.std(correction=0).item(),
                   **{k: v for k, v in skipping.items() if k.startswith('backbone_')})
        write_json(row, path)
        return row


def evaluate(cfg, checkpoint, execution):
    """Test a checkpoint in one execution.

    Args:
        cfg (Config): The run's config, which is changed.
        checkpoint (Path): Its weights.
        execution (str): 'masked' or 'skipping'; only skipping is timed.

    Returns:
        tuple[dict[str, float], Tensor]: Metrics, and the FLOPs fraction of every image.
    """
    cfg.model.backbone.execution = execution
    cfg.load_from, cfg.resume = str(checkpoint), False
    cfg.experiment_name = f'{checkpoint.parent.name}_{execution}_{time.time_ns()}'
    cfg.log_level = 'WARNING'
    cfg.default_hooks.latency.interval = int(execution == 'skipping')
    runner, fractions = Runner.from_cfg(cfg), []
    backbone = find_backbone(runner.model, 'the evaluation')

    def note(*_):
        # Before the next batch runs, and once at the end: what the last one decided.
        if backbone.record is not None:
            fractions.append(backbone.record.cost().fraction)
    handle = runner.model.register_forward_pre_hook(note)
    metrics = runner.test()
    handle.remove()
    note()
    return {k: float(v) for k, v in metrics.items()}, torch.cat(fractions)
