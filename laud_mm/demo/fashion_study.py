"""Accuracy against FLOPs and time on Fashion-MNIST, against smaller static nets."""
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from laud_mm.deploy import deploy
from laud_mm.latency.calibrated import load_predictor
from laud_mm.latency.measure import measure_interleaved
from laud_mm.models.find import find_backbone

from .dynamics import describe, harder_half, load_classifier, read_images, run_classifier
from .fashion import build_fashion
from .fashion_report import ABLATED, LIMITS, QUICK_LIMITS
from .fashion_results import Results
from .study import Study, StudyRun

DEVICES = dict(TX2=1, V100=128)  # images per batch that predictions are for
TIMED_BATCHES = (64, 1)
STATIC_CONFIG, DISTILLED_CONFIG = 'laud_resnet_fashion_static', 'laud_resnet_fashion_static_kd'
CONFIGS = dict(layer='laud_resnet_fashion', spatial='laud_resnet_fashion_spatial',
               channel='laud_resnet_fashion_channel')
SEEDS = (0, 1, 2)
DYNAMIC_EPOCHS, STATIC_EPOCHS, ABLATION_EPOCHS = 6, 10, 2
QUICK_EPOCHS = 3, 5


def epochs(count):
    """Overrides for a training of so many epochs."""
    return {'train_cfg.max_epochs': count, 'train_cfg.val_interval': count,
            'param_scheduler.T_max': count}


def narrower(width):
    """Overrides for a static net of another base width."""
    return {'model.backbone.base_channels': width, 'model.head.in_channels': 32 * width}


def smaller(size):
    """Overrides for images of another size."""
    return {**{f'{loader}_dataloader.dataset.pipeline.0.scale': size
               for loader in ('train', 'val', 'test')},
            'train_dataloader.dataset.pipeline.1.crop_size': size}


# Static nets that cost less: they train as long as a dynamic net and its teacher together.
FRONTIER = dict(
    w12=narrower(12), w8=narrower(8), r24=smaller(24), d26={'model.backbone.depth': 26},
    d26_w12={'model.backbone.depth': 26, **narrower(12)}, w10=narrower(10),
    r20=smaller(20), r24_w12={**smaller(24), **narrower(12)},
    d26_w8={'model.backbone.depth': 26, **narrower(8)})


# What may make a net dynamic, one change at a time of a short training with layers at 0.6.
_HOOK = 'default_hooks.activation'
_MASKER_LR = 'optim_wrapper.paramwise_cfg.custom_keys.masker.lr_mult'
ABLATION = dict(
    plain={}, diversity_01={f'{_HOOK}.diversity': 0.1}, diversity_03={f'{_HOOK}.diversity': 0.3},
    diversity_1={f'{_HOOK}.diversity': 1.0}, warm={f'{_HOOK}.temperature.end': 1.0},
    slow={_MASKER_LR: 5.0}, fast={_MASKER_LR: 100.0}, unbound={f'{_HOOK}.bounds': False})


def study_runs(quick=False):
    """All trainings, the most telling first.

    Args:
        quick (bool): A teacher, one net of each paradigm and two smaller static nets only,
            trained for half as long.

    Returns:
        list[StudyRun]: Teachers come before what they teach.
    """
    dynamic_epochs, static_epochs = QUICK_EPOCHS if quick else (DYNAMIC_EPOCHS, STATIC_EPOCHS)
    together = dynamic_epochs + static_epochs
    teachers = {seed: StudyRun(f'static_s{seed}', STATIC_CONFIG,
                               options={**epochs(static_epochs), 'randomness.seed': seed})
                for seed in SEEDS}

    def dynamic(paradigm, target=0.6, seed=0, name='', **options):
        words = [name or paradigm, f't{round(target * 10):02d}', f's{seed}']
        return StudyRun(
            '_'.join(words), CONFIGS.get(paradigm, CONFIGS['layer']), paradigm, target,
            {**epochs(dynamic_epochs), 'default_hooks.activation.target': target,
             'randomness.seed': seed, **options}, teachers[seed])

    def static(name, seed=0):
        return StudyRun(f'{name}_s{seed}', STATIC_CONFIG, options={
            **epochs(together), 'randomness.seed': seed, **FRONTIER[name]})

    def distilled(name, seed=0):
        return StudyRun(f'{name}_kd_s{seed}', DISTILLED_CONFIG, options={
            **epochs(together), 'randomness.seed': seed, **FRONTIER[name]}, teacher=teachers[seed])

    first = [dynamic(paradigm) for paradigm in CONFIGS]
    ablation = [dynamic('layer', name=f'{ABLATED}{name}', **{**epochs(ABLATION_EPOCHS), **own})
                for name, own in ABLATION.items()]
    if quick:
        return [teachers[0], *first, *map(static, ('w12', 'w8'))]
    both = partial(dynamic, 'both', **{'model.backbone.paradigm': 'both'})
    mixes = {'mix_llss': ['layer', 'layer', 'spatial', 'spatial'],
             'mix_sscc': ['spatial', 'spatial', 'channel', 'channel'],
             'mix_ssll': ['spatial', 'spatial', 'layer', 'layer']}
    runs = [teachers[0], *ablation, *first, static('w12'), static('w8'), dynamic('layer', 0.4),
            *map(static, [name for name in FRONTIER if name not in ('w12', 'w8')]),
            dynamic('spatial', 0.4), dynamic('channel', 0.4), distilled('w12'), distilled('w8'),
            *(dynamic(paradigm, target) for target in (0.3, 0.8) for paradigm in CONFIGS),
            *(both(target=target) for target in (0.6, 0.4, 0.3, 0.8)),
            # The papers' comparisons: DynConv and BAS. Layers block by block are ConvNet-AIG.
            dynamic('spatial', name='spatial_s1', **{'model.backbone.spatial_granularity': 1}),
            dynamic('channel', name='channel_g1', **{'model.backbone.channel_granularity': 1}),
            *(dynamic('mix', name=name, **{'model.backbone.paradigm': stages})
              for name, stages in mixes.items()),
            *(dynamic(paradigm, name=f'{paradigm}_without_kd', **{'model.loss_kd.weight': 0.0})
              for paradigm in CONFIGS)]
    for seed in SEEDS[1:]:
        runs += [teachers[seed],
                 *(dynamic(paradigm, target, seed) for target in (0.6, 0.4)
                   for paradigm in CONFIGS),
                 *(static(name, seed) for name in ('w12', 'w8', 'r24', 'd26', 'd26_w12')),
                 both(seed=seed)]
    return runs


class FashionStudy(Study):
    """The study on Fashion-MNIST."""

    def load(self, run):
        """The trained classifier, its validation and its test images."""
        model, known, tested = load_classifier(self.config(run), self.final(run))
        return model, read_images(model, known), read_images(model, tested)

    def evaluate(self, run: StudyRun, hard: torch.Tensor | None = None) -> dict:
        """A row of the results: everything about a trained run but its measured times.

        Args:
            run (StudyRun): The run.
            hard (Tensor, optional): See `describe`.
        """
        model, known, tested = self.load(run)
        row, outcome = describe(model, known, tested, hard)
        backbone, size = find_backbone(model, 'the evaluation'), tested.batches[0].shape[-2:]
        (_, rates), = outcome.statistics.rates_by_size().values()
        for device, batch in DEVICES.items():
            report = load_predictor(device).predict(backbone.op_specs(tuple(size)), rates, batch)
            row[f'predicted_ms/{device}'] = report.latency_per_image_ms
        return dict(name=run.name, recipe=self.recipe(run), paradigm=run.paradigm,
                    target=run.target, seed=self.config(run).randomness.seed, **row)

    def hard_images(self, teacher: StudyRun) -> torch.Tensor:
        """(N,) bool: the half of the test images that the static net finds harder."""
        model, _, tested = self.load(teacher)
        return harder_half(run_classifier(model, tested).losses(tested.labels))

    def time(self, runs: Sequence[StudyRun], repeats: int = 10) -> dict[str, dict]:
        """Time the backbones of runs in turn, in their deployed form, on test images.

        Args:
            runs (Sequence[StudyRun]): With checkpoints.
            repeats (int): Timed passes of each.

        Returns:
            dict[str, dict]: By run: median milliseconds per image, by batch size.
        """
        found: dict[str, dict] = {run.name: {} for run in runs}
        loaded = {}
        for run in runs:
            model, _, tested = self.load(run)
            loaded[run.name] = find_backbone(model, 'timing'), torch.cat(tested.batches[:3])
        for batch in TIMED_BATCHES:
            programs = {}
            for name, (backbone, images) in loaded.items():
                net = deploy(backbone, image_size=images.shape[-2:], batch=batch)
                # Single images differ in what they cost.
                views = [part.contiguous(memory_format=torch.channels_last)
                         for part in images.split(batch)[:1 if batch > 1 else 32]]
                programs[name] = partial(_run_all, net, views)
            with torch.no_grad():
                stats, _ = measure_interleaved(programs, 'cpu', 3, repeats)
            for name, (_, images) in loaded.items():
                count = batch * len(images.split(batch)[:1 if batch > 1 else 32])
                found[name][f'measured_ms/batch_{batch}'] = stats[name].p50_ms / count
        return found


def _run_all(net, views):
    for x in views:
        net(x)


def run_fashion(config_dir, train_tool, work_dir, data_root='data/fashion_mnist', source=None,
                known=None, quick=False, jobs=None, only=None, timing=True, options=None):
    """Write the data, train what is not trained yet, evaluate, time, and write table and plot.

    Killed at any moment and run again, it goes on from the last checkpoints. Results are written
    after every run.

    Args:
        config_dir (str | Path): Folder of the configs.
        train_tool (str | Path): `tools/train.py`.
        work_dir (str | Path): One folder per training, `fashion.json`, `table.md` and
            `accuracy.png`.
        data_root (str | Path): Where the images are or will be.
        source (str | Path, optional): See `build_fashion`.
        known (str | Path, optional): Results of before, such as those of this repository: runs
            of the same recipe in it are not trained again.
        quick (bool): See `study_runs`.
        jobs (int, optional): Trainings at a time; default: one per core, at most 4.
        only (Sequence[str], optional): Names of runs; default: all.
        timing (bool): Whether to time the nets whose checkpoints are here, all in turn. Not done
            where a net that has times has no checkpoint here: its times could not be compared.
        options (dict[str, Any], optional): More overrides for every training.

    Returns:
        tuple[str, list[str]]: The table, and what did not come out as it must.

    Raises:
        ValueError: If `only` names an unknown run.
    """
    runs = {run.name: run for run in study_runs(quick)}
    unknown = set(only or ()) - set(runs)
    if unknown:
        raise ValueError(f'only must name runs among {", ".join(runs)}, got '
                         f'{", ".join(sorted(unknown))}')
    build_fashion(data_root, source)
    study = FashionStudy(Path(config_dir), Path(train_tool), Path(work_dir), str(data_root),
                         options or {})
    results = Results(study, runs, [study.work_dir / 'fashion.json', *([known] if known else [])],
                      QUICK_LIMITS if quick else LIMITS)
    wanted = [run for name, run in runs.items() if name not in results.rows
              and (not only or name in only)]
    cores = len(os.sched_getaffinity(0))
    jobs = jobs or min(cores, 4)
    first, hard = next(iter(runs.values())), []

    def note(run):
        if run.name not in results.rows:
            hard[:] = hard or [study.hard_images(first)]
            results.add(study.evaluate(run, hard[0]))

    for seed in SEEDS:
        own = [run for run in wanted if run.options['randomness.seed'] == seed]
        # Teachers train alone, also those whose figures are known: others learn from them.
        teachers = dict.fromkeys([*([first] if own else []),
                                  *(run.teacher for run in own if run.teacher)])
        study.train(list(teachers), 1, cores, note)
        study.train([run for run in own if run not in teachers], jobs, max(cores // jobs, 1), note)
    trained = [run for name, run in runs.items()
               if name in results.rows and study.is_trained(run)]
    if timing and results.lacks_times(trained):
        results.add_times(study.time(trained))
    return results.report()
