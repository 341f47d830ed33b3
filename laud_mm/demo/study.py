"""A study: trainings that go on where they were killed."""
import copy
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from laud_mm.utils.files import write_json
from laud_mm.utils.run import load_config
from laud_mm.weights.safe import is_complete


@dataclass(frozen=True)
class StudyRun:
    """One training of a study.

    Attributes:
        name (str): Of its folder.
        config (str): Of its config file, without `.py`.
        paradigm (str): What it skips, or 'static'.
        target (float): FLOPs fraction wanted.
        options (dict[str, Any]): Overrides of the config.
        teacher (StudyRun | None): What it starts and learns from.
    """
    name: str
    config: str
    paradigm: str = 'static'
    target: float = 1.0
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    teacher: 'StudyRun | None' = None


@dataclass(frozen=True)
class Study:
    """Where the trainings live, and what they share.

    Attributes:
        config_dir (Path): Folder of the configs.
        train_tool (Path): `tools/train.py`.
        work_dir (Path): One folder per training.
        data_root (str): The images.
        options (dict[str, Any]): Overrides for every training.
    """
    config_dir: Path
    train_tool: Path
    work_dir: Path
    data_root: str
    options: dict

    def config(self, run):
        """The run's config with its overrides."""
        cfg = copy.deepcopy(_read_config(self.config_dir / f'{run.config}.py'))
        cfg.merge_from_dict(self.overrides(run))
        cfg.work_dir = str(self.work_dir / run.name)
        return cfg

    def overrides(self, run):
        """Everything that differs from the run's config file."""
        roots = {f'{loader}_dataloader.dataset.data_root': self.data_root
                 for loader in ('train', 'val', 'test')}
        teacher = {} if run.teacher is None else \
            {'model.teacher.checkpoint': str(self.final(run.teacher))}
        return {**roots, **teacher, **run.options, **self.options}

    def final(self, run):
        """The checkpoint of the run's last epoch."""
        return self.work_dir / run.name / f'epoch_{self.config(run).train_cfg.max_epochs}.pth'

    def recipe(self, run):
        """A short digest of all that the run's weights depend on, its teacher's included."""
        cfg = self.config(run)
        model = {k: v for k, v in cfg.model.items() if k != 'teacher'}
        data = {k: v for k, v in cfg.train_dataloader.dataset.items() if k != 'data_root'}
        parts = [model, data, cfg.train_dataloader.batch_size, cfg.data_preprocessor,
                 cfg.optim_wrapper, cfg.param_scheduler, cfg.train_cfg.max_epochs,
                 cfg.default_hooks.get('activation'), cfg.randomness,
                 run.teacher and self.recipe(run.teacher)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def train(self, runs, jobs, threads, finished=lambda run: None):
        """Train what has no final checkpoint, `jobs` at a time.

        Args:
            runs (Sequence[StudyRun]): What to train.
            jobs (int): Trainings at a time.
            threads (int): Threads of each.
            finished (Callable): Called with each run that is trained, at once if it was before.

        Raises:
            RuntimeError: If a training fails, with the place of its log, or if the folder of a
                run holds what another recipe made.
        """
        waiting = [run for run in runs if not self.is_trained(run)]
        for run in runs:
            if run not in waiting:
                finished(run)
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
                    finished(run)
        finally:
            for process in running.values():
                process.kill()

    def is_trained(self, run):
        """Whether the run's final checkpoint is there.

        Raises:
            RuntimeError: If its folder holds what another recipe made.
        """
        note = self.work_dir / run.name / 'recipe.json'
        found = json.loads(note.read_text()) if note.is_file() else None
        if found not in (None, self.recipe(run)):
            raise RuntimeError(f'{note.parent} was made by another recipe: remove it, or name '
                               'another work dir')
        return is_complete(self.final(run))

    def _start(self, run, threads):
        folder = self.work_dir / run.name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self.recipe(run), folder / 'recipe.json')
        command = [sys.executable, str(self.train_tool), str(self.config_dir / f'{run.config}.py'),
                   '--work-dir', str(folder), '--resume', '--cfg-options',
                   *(f'{key}={_as_option(value)}' for key, value in self.overrides(run).items())]
        print(f'training {run.name}: log in {folder / "train.log"}', flush=True)
        with open(folder / 'train.log', 'a') as log:
            return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent,
                                    env=dict(os.environ, OMP_NUM_THREADS=str(threads)))


@lru_cache
def _read_config(path):
    return load_config(str(path))


def _as_option(value):
    """A value as `--cfg-options` reads it: no quotes inside lists."""
    return str(value).replace("'", '').replace(' ', '') if isinstance(value, list) else value


def _die_with_parent():
    # A killed study must not leave trainings that a second one would run into.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
