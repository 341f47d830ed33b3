"""Train the toy classifier for two iterations and save its weights.

    train_toy.py DIR PARADIGM [CHECKPOINT]

With a checkpoint, its weights are loaded and the first stage is frozen.
"""
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from laud_mm.hooks import ActivationHook
from tests.toy import ToyClassifier, ToyImages, make_runner


def main():
    folder, paradigm, *checkpoint = sys.argv[1:]
    processes = int(os.environ.get('WORLD_SIZE', 1))
    kwargs = {}
    if processes > 1:
        dist.init_process_group('gloo')
        kwargs = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None)))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # Fresh maskers hardly look at the image: stir them, so that rates differ.
    model = ToyClassifier(paradigm=paradigm, norm_eval=True, masker=dict(noise=False),
                          frozen_stages=1 if checkpoint else -1)
    for masker in model.backbone.maskers():
        for parameter in masker.parameters():
            torch.nn.init.normal_(parameter)
    model.init_weights = lambda: None  # every run starts from these weights
    # Interleaved shares: each global batch holds the same images in every run.
    images = ToyImages(8)
    loader = DataLoader(images, batch_size=4 // processes,
                        sampler=DefaultSampler(images, shuffle=False))
    hook = ActivationHook(target=0.3, bounds=True, temperature=dict(type='fixed', end=1.0))
    if checkpoint:
        kwargs['load_from'], = checkpoint
    runner = make_runner(folder, [hook], model=model, train_dataloader=loader,
                         optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), **kwargs)
    runner.train()
    if runner.rank == 0:
        torch.save(model.state_dict(), Path(folder, 'weights.pth'))


if __name__ == '__main__':
    main()
