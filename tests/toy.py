"""A tiny classifier on random images, trained through mmengine's Runner."""
import uuid

import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from laud_mm.models.backbones import LAUDResNet


class ToyImages(Dataset):
    """Random images that are the same in every process."""

    def __init__(self, count, size=32, sizes=None):
        generator = torch.Generator().manual_seed(7)
        sizes = sizes or [(size, size)] * count
        self.images = [torch.rand(3, *s, generator=generator) for s in sizes]
        self.labels = torch.randint(0, 4, (len(sizes),), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(inputs=self.images[index], labels=self.labels[index])


class ToyClassifier(BaseModel):
    def __init__(self, **backbone):
        super().__init__()
        settings = dict(dict(depth=50, base_channels=8, out_indices=(3,)), **backbone)
        self.backbone = LAUDResNet(**settings)
        self.head = nn.Linear(256, 4)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        if mode == 'loss':
            return dict(loss_cls=nn.functional.cross_entropy(logits, labels))
        return logits


class ToyEvaluator(Evaluator):
    """Says the same of any predictions."""

    def __init__(self):
        super().__init__(())

    def process(self, data_samples, data_batch=None):
        pass

    def evaluate(self, size):
        return dict(accuracy=0.5)


def make_runner(work_dir, hooks=(), images=8, batch_size=2, epochs=1, backbone=None,
                val_images=0, model=None, max_iters=None, **kwargs):
    """A Runner that trains a ToyClassifier, and evaluates it where `val_images` says."""
    settings = dict(
        model=model or ToyClassifier(**(backbone or {})), work_dir=str(work_dir),
        train_dataloader=DataLoader(ToyImages(images), batch_size=batch_size),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1) if max_iters is None
        else dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        custom_hooks=list(hooks), log_level='ERROR', default_scope='laud_mm',
        randomness=dict(seed=0), experiment_name=f'toy_{uuid.uuid4().hex}')
    if val_images:
        settings.update(val_dataloader=DataLoader(ToyImages(val_images), batch_size=1),
                        val_cfg=dict(), val_evaluator=ToyEvaluator())
    return Runner(**dict(settings, **kwargs))
