"""Accuracy against latency on the digits: the papers' figure in small."""
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.runner import Runner

from laud_mm.latency.measure import device_stamp
from laud_mm.models.find import find_backbone
from laud_mm.utils.files import write_json
from laud_mm.utils.run import load_config
from laud_mm.weights.safe import is_complete

from .digits import build_digits
from .digits_report import find_problems, make_table, plot_study

TARGETS = (0.4, 0.6, 0.8)
CONFIGS = {'layer': 'laud_resnet_digits', 'channel': 'laud_resnet_digits_channel',
           'spatial': 'laud_resnet_digits_spatial'}


@dataclass(frozen=True)
class DigitsRun:
    """One training of the study.

    Attributes:
        name (str): Of its folder.
        config (str): Of its config file, without `.py`.
        paradigm (str): What it skips, or 'static'.
        target (float): FLOPs fraction wanted.
        options (dict[str, Any]): Overrides of the config.
    """
    name: str
    config: str
    paradigm: str = 'static'
    target: float = 1.0
    options: dict = field(default_factory=dict, hash=False)


STATIC = DigitsRun('static', 'laud_resnet_digits_static')


def student_runs(targets=TARGETS):
    """Every paradigm at every target, and the first paradigm without its teacher's loss."""
    runs = [DigitsRun(f'{paradigm}_t{round(target * 10):02d}', config, paradigm, target,
                      {'default_hooks.activation.target': target})
            for paradigm, config in CONFIGS.items() for target in targets]
    first = runs[list(targets).index(0.6) if 0.6 in targets else 0]
    return [*runs, DigitsRun(f'{first.name}_without_kd', first.config, first.paradigm, first.target,
                             {**first.options, 'model.loss_kd.weight': 0.0})]


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
    study = Study(Path(config_dir), Path(train_tool), Path(work_dir), str(data_root), options or {})
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


@dataclass(frozen=True)
class Study:
    """Where the trainings live, and what they share.

    Attributes:
        config_dir (Path): Folder of the configs.
        train_tool (Path): `tools/train.py`.
        work_dir (Path): One folder per training.
        data_root (str): The digits.
        options (dict[str, Any]): Overrides for every training.
    """
    config_dir: Path
    train_tool: Path
    work_dir: Path
    data_root: str
    options: dict

    def config(self, run):
        """The run's config with its overrides."""
        return load_config(str(self.config_dir / f'{run.config}.py'), self.overrides(run),
                           str(self.work_dir / run.name))

    def overrides(self, run):
        """Everything that differs from the run's config file."""
        roots = {f'{loader}_dataloader.dataset.data_root': self.data_root
                 for loader in ('train', 'val', 'test')}
        teacher = {} if run is STATIC else {'model.teacher.checkpoint': str(self.final(STATIC))}
        return {**roots, **teacher, **run.options, **self.options}

    def final(self, run):
        """The checkpoint of the run's last epoch."""
        return self.work_dir / run.name / f'epoch_{self.config(run).train_cfg.max_epochs}.pth'

    def train(self, runs, jobs, threads):
        """Train what has no final checkpoint, `jobs` at a time.

        Args:
            runs (Sequence[DigitsRun]): What to train.
            jobs (int): Trainings at a time.
            threads (int): Threads of each.

        Raises:
            RuntimeError: If a training fails, with the place of its log.
        """
        waiting = [run for run in runs if not is_complete(self.final(run))]
        running = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running[run] = self._start(run, threads)
                time.sleep(0.2)
                for run in [r for r, process in running.items() if process.poll() is not None]:
                    if running.pop(run).returncode:
                        raise RuntimeError(f'the training {run.name} failed, see '
                                           f'{self.work_dir / run.name / "train.log"}')
        finally:
            for process in running.values():
                process.kill()

    def _start(self, run, threads):
        folder = self.work_dir / run.name
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(self.train_tool), str(self.config_dir / f'{run.config}.py'),
                   '--work-dir', str(folder), '--resume', '--cfg-options',
                   *(f'{key}={value}' for key, value in self.overrides(run).items())]
        print(f'training {run.name}: log in {folder / "train.log"}', flush=True)
        with open(folder / 'train.log', 'a') as log:
            return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent,
                                    env=dict(os.environ, OMP_NUM_THREADS=str(threads)))

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


def _die_with_parent():
    # A killed study must not leave trainings that a second one would run into.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


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
