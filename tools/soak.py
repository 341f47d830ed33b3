"""Kill a tiny training at random moments, again and again, and check that nothing is lost.

    soak.py [--cycles 200] [--work-dir work_dirs/soak] [--seed 0]

Every cycle resumes the training and ends it with SIGKILL. After each, the newest checkpoint must
be complete, and not older than the one before; a training that comes to its end must have the
weights of one that was never interrupted, to 1e-6. Exits with 1 at the first that is not so.
"""
import argparse
import json
import logging
import multiprocessing
import random
import shutil
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from laud_mm.checkpoints import allow_runner_types, find_resumable
from laud_mm.models.backbones import LAUDResNet
from laud_mm.utils.files import write_json

EPOCHS, IMAGES, BATCH, TOLERANCE = 12, 12, 4, 1e-6


class NoisyImages(Dataset):
    """Images that are augmented by all three generators of random numbers."""

    def __init__(self):
        self.images = torch.rand(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(7))

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        image = self.images[index] + 0.1 * torch.randn(3, 32, 32) + np.random.rand()
        return dict(inputs=image.flip(-1) if random.random() < 0.5 else image, labels=index % 4)


class NoisyClassifier(BaseModel):
    """A small LAUD-ResNet whose maskers sample, and a classifier with dropout."""

    def __init__(self):
        super().__init__()
        self.backbone = LAUDResNet(50, base_channels=4, num_stages=2, strides=(1, 2),
                                   dilations=(1, 1), out_indices=(1,), paradigm='both',
                                   spatial_granularity=2, channel_granularity=2)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(logits, labels))
        return logits


def train(work_dir, by_epoch=True):
    """Train to the end, from the newest checkpoint where there is one."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    resume = find_resumable(work_dir)
    steps = EPOCHS if by_epoch else EPOCHS * (IMAGES // BATCH)
    cfg = dict(by_epoch=True, max_epochs=steps) if by_epoch else dict(
        by_epoch=False, max_iters=steps)
    sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    runner = Runner(
        NoisyClassifier(), str(work_dir), train_cfg=cfg,
        train_dataloader=dict(dataset=NoisyImages(), batch_size=BATCH, num_workers=0,
                              sampler=sampler, collate_fn=dict(type='default_collate')),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=steps, by_epoch=by_epoch),
        default_hooks=dict(checkpoint=dict(
            type='laud_mm.AtomicCheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 3,
            max_keep_ckpts=2)),
        custom_hooks=[dict(type='laud_mm.ActivationHook', target=0.5)],
        resume=resume is not None, load_from=str(resume) if resume else None,
        randomness=dict(seed=3), default_scope='laud_mm', log_level='CRITICAL',
        experiment_name=f'soak_{time.time_ns()}')
    runner.train()
    torch.save(runner.model.state_dict(), Path(work_dir, 'final.part'))
    Path(work_dir, 'final.part').rename(Path(work_dir, 'final'))


def start(work_dir, by_epoch):
    """Start a training in a process of its own."""
    process = multiprocessing.get_context('fork').Process(target=train, args=(work_dir, by_epoch))
    process.start()
    return process


def progress(work_dir):
    """Iterations of the newest complete checkpoint that loads; 0 if there is none.

    Raises:
        AssertionError: If files are there, but none of them is complete.
    """
    found = find_resumable(work_dir)
    if found is None:
        files = list(Path(work_dir).glob('*.pth'))
        assert not files, f'no checkpoint is complete of {files}'
        return 0
    allow_runner_types()  # loading by some versions of mmengine ends with a shorter list
    return torch.load(found, map_location='cpu', weights_only=True)['meta']['iter']


def difference(work_dir, expected):
    """The largest difference of final weights."""
    weights = torch.load(Path(work_dir, 'final'), weights_only=True)
    return max((weights[name].double() - expected[name].double()).abs().max().item()
               for name in expected)


def soak(cycles, work_dir, seed=0, by_epoch=True):
    """Run the cycles.

    Args:
        cycles (int): Kills, at least 1.
        work_dir (Path): Folder; what is in it goes.
        seed (int): Of the moments.
        by_epoch (bool): Train by epochs, else by iterations.

    Returns:
        dict: Kills, trainings that came to their end, iterations trained twice, and the largest
        difference to the weights of an uninterrupted training.

    Raises:
        AssertionError: As soon as something was lost.
    """
    if cycles < 1:
        raise ValueError(f'cycles must be at least 1, got {cycles}')
    shutil.rmtree(work_dir, ignore_errors=True)
    moments, began = random.Random(seed), time.monotonic()
    reference = start(work_dir / 'reference', by_epoch)
    reference.join()
    duration = time.monotonic() - began
    expected = torch.load(work_dir / 'reference' / 'final', weights_only=True)
    kills, ends, largest, resumed, folder, before = 0, 0, 0.0, 0, work_dir / 'run_0', 0
    while kills < cycles or before or not ends:
        process = start(folder, by_epoch)
        # The last training may end in peace, so that its weights are compared too.
        process.join(moments.uniform(0.05, 0.6) * duration if kills < cycles else None)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        elif process.exitcode:
            raise AssertionError(f'a resumed training failed with {process.exitcode}')
        now = progress(folder)
        assert now >= before, f'the newest checkpoint went back from {before} to {now} iterations'
        resumed += before > 0
        before = now
        if (folder / 'final').is_file():
            largest = max(largest, difference(folder, expected))
            assert largest <= TOLERANCE, f'final weights differ by {largest:.2e}'
            ends, before = ends + 1, 0
            folder = work_dir / f'run_{ends}'
    return dict(kills=kills, resumed=resumed, ends=ends, largest_difference=largest,
                uninterrupted_s=duration, by_epoch=by_epoch)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cycles', type=int, default=200, help='kills')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/soak'))
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--iterations', action='store_true', help='train by iterations')
    args = parser.parse_args()
    try:
        result = soak(args.cycles, args.work_dir, args.seed, not args.iterations)
    except (AssertionError, ValueError) as error:
        sys.exit(f'error: {error}')
    write_json(result, args.work_dir / 'soak.json')
    print(json.dumps(result, indent=2))


if __name__ == '__main__':
    main()
