"""ActivationHook: temperature and activation loss for any detector or classifier."""
import math
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from laud_mm.models.find import find_backbone, unwrap
from laud_mm.registry import HOOKS, MODELS
from laud_mm.specs.arguments import check_choice


class TemperatureSchedule:
    """Gumbel temperature over the training.

    Args:
        type (str): 'exponential' (from start to end), 'fixed' (always end), or
            'auto': fixed for maskers that came from a checkpoint, exponential
            for fresh ones, which at a low temperature get next to no gradient.
        start (float): Temperature at the first iteration of 'exponential'.
        end (float): Temperature at the last.
    """
    TYPES = ('auto', 'exponential', 'fixed')

    def __init__(self, type='auto', start=5.0, end=0.1):
        self.type = check_choice('temperature.type', type, self.TYPES)
        for field, value in (('start', start), ('end', end)):
            if not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f'temperature.{field} must be a number > 0, got {value!r}')
        self.start, self.end = start, end

    def resolve(self, maskers):
        """Settle what 'auto' means for these maskers."""
        if self.type == 'auto':
            loaded = bool(maskers) and all(m.loaded for m in maskers)
            self.type = 'fixed' if loaded else 'exponential'

    def __call__(self, progress):
        """Temperature at `progress` in [0, 1]."""
        if self.type == 'fixed':
            return self.end
        return self.start * (self.end / self.start)**progress


class Detach:
    """Removes several hooks at once.

    Args:
        handles (list[RemovableHandle]): Of the hooks.
    """

    def __init__(self, handles: list):
        self._handles = handles

    def remove(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()


@HOOKS.register_module()
class ActivationHook(Hook):
    """Set the Gumbel temperature, add the activation loss, and log both.

    The loss joins the dict that the model returns in `mode='loss'`, through a
    forward hook on the unwrapped model: no detector is forked, DDP sees it,
    activation checkpointing and gradient accumulation do not double it. Images of all passes
    of an iteration count, such as the key and the reference frames of a tracker. All
    schedules follow iterations / max_iters, so they survive `--resume`.

    Args:
        target (float, optional): FLOPs fraction t of the backbone, in (0, 1]; default: 0.5.
        weight (float, optional): alpha, weight of the loss; default: 10.
        bounds (bool, optional): See `ActivationLoss`; default: False.
        diversity (float, optional): See `ActivationLoss`; default: 0.
        metric, device, batch (optional): See `ActivationLoss`; default: FLOPs.
        temperature (dict): Arguments of `TemperatureSchedule`.
        loss (dict, optional): Config of another loss in place of the activation loss,
            such as dict(type='laud_mm.AdaViTLoss'), with arguments of its own.
        interval (int): Iterations between two logs of the per-block rates (which,
            unlike the loss and the FLOPs fraction, are those of the main process).
        backbone (str, optional): Name of the backbone in the model, such as
            'student.backbone'; default: the one that learns.

    Raises:
        ValueError: If the model has no LAUD backbone, or an argument is out of range.
        FloatingPointError: In training, as soon as the loss is not finite and
            before any checkpoint is written with it.
    """
    priority = 'NORMAL'

    def __init__(self, target: float | None = None, weight: float | None = None,
                 bounds: bool | None = None, temperature: dict = dict(type='auto'),
                 interval: int = 50, loss: dict | None = None, backbone: str | None = None,
                 diversity: float | None = None, metric: str | None = None,
                 device: str | None = None, batch: int | None = None):
        own = dict(target=target, weight=weight, bounds=bounds, diversity=diversity,
                   metric=metric, device=device, batch=batch)
        own = {name: value for name, value in own.items() if value is not None}
        if loss and own:
            raise ValueError(f'loss must be None where {", ".join(own)} is given, got {loss!r}')
        self.loss = MODELS.build(loss or dict(
            dict(type='laud_mm.ActivationLoss', target=0.5, bounds=False), **own))
        self.temperature = TemperatureSchedule(**temperature)
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval must be a positive int, got {interval!r}')
        self.interval, self.backbone = interval, backbone
        self._backbone: Any = None
        self._cost = self._fraction = None
        self._handles: list = []
        self._records: list = []
        self._progress = 0.0

    def attach(self, model: nn.Module) -> Detach:
        """Add the activation loss to what a model returns in `mode='loss'`.

        Args:
            model (nn.Module): With one LAUD backbone; may be wrapped for DDP.

        Returns:
            Detach: Its `remove()` takes the loss away again.
        """
        model, self._backbone = unwrap(model), self._find(model)
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            self._backbone.register_forward_hook(self._note_pass),
            model.register_forward_hook(self._add_loss, with_kwargs=True)]
        return Detach(self._handles)

    def _find(self, model):
        return find_backbone(model, 'ActivationHook', self.backbone, learning=True)

    def before_train(self, runner):
        if sum(isinstance(hook, ActivationHook) for hook in runner.hooks) > 1:
            raise ValueError('a config must name one ActivationHook, got several: the LAUD configs '
                             'have theirs at default_hooks.activation')
        self._backbone = self._find(runner.model)
        self._settle_frozen_maskers(runner)
        self.temperature.resolve(self._backbone.maskers())
        budget = getattr(self.loss, 'budget', None)
        runner.logger.info(f'Gumbel temperature: {self.temperature.type}; '
                           f'{type(self.loss).__name__}, target: {self.loss.target} of the '
                           f'{f"time on {budget.device}" if budget else "FLOPs"}')
        self.attach(runner.model)

    def _settle_frozen_maskers(self, runner):
        # Only now is it known whether a checkpoint brought the maskers of frozen
        # stages. DDP noted which parameters learn before that, so wrap anew.
        self._backbone.train(self._backbone.training)
        if is_model_wrapper(runner.model) and self._backbone.maskers_are_frozen():
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'),
                                             unwrap(runner.model))

    def after_train(self, runner):
        Detach(self._handles).remove()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._progress = min(runner.iter / max(runner.max_iters, 1), 1.0)
        self._backbone.set_temperature(self.temperature(self._progress))

    def _begin(self, model, args):
        self._records = []

    def _note_pass(self, backbone, args, outputs):
        if torch.is_grad_enabled():  # else nothing is learnt from it
            self._records.append(backbone.record)

    def _add_loss(self, model, args, kwargs, outputs):
        mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
        if mode != 'loss':
            return outputs
        if not self._records:
            raise RuntimeError('the backbone of ActivationHook must run in the forward pass of '
                               f'the loss, {type(model).__name__} ran it in none')
        costs = [record.cost() for record in self._records]
        cost = costs[0].together(costs)
        self._records = []
        loss, self._fraction = self.loss(cost, self._progress)
        self._cost = cost
        return {**outputs, 'loss_activation': loss}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._check_finite(runner, outputs or {})
        cost, hub = self._cost, runner.message_hub
        if self.loss.target is not None:
            hub.update_scalar('train/activation_target', self.loss.target)
        hub.update_scalars({
            'train/activation_fraction': self._fraction.item(),
            'train/activation_rate': cost.mean_rate.item(),
            'train/gumbel_temperature': self.temperature(self._progress)})
        if self.every_n_train_iters(runner, self.interval):
            # Straight to the visualizer: one value per block is too much for the text log.
            rates = cost.mean_rates.tolist()
            runner.visualizer.add_scalars(
                {f'activation_rate/{name}': rate for name, rate, dynamic
                 in zip(cost.names, rates, cost.dynamic) if dynamic}, step=runner.iter + 1)
        self._cost = None

    def _check_finite(self, runner, outputs):
        bad = {k: float(v) for k, v in outputs.items()
               if 'loss' in k and not math.isfinite(torch.as_tensor(v).sum().item())}
        if bad:
            raise FloatingPointError(
                f'the loss is not finite at iteration {runner.iter + 1}: {bad}. Training stops; '
                'the checkpoints written so far are intact. Try a lower learning rate, or '
                'gradient clipping')

    def before_save_checkpoint(self, runner, checkpoint):
        # A resumed training must not take maskers that it trained for loaded ones.
        checkpoint['laud_mm'] = dict(temperature=self.temperature.type,
                                     maskers_frozen=self._backbone.maskers_are_frozen())

    def after_load_checkpoint(self, runner, checkpoint):
        state = checkpoint.get('laud_mm')
        if state and runner._resume:
            if self.temperature.type == 'auto':
                self.temperature.type = state['temperature']
            backbone = self._find(runner.model)
            backbone.freeze_maskers = state['maskers_frozen']
            backbone.train(backbone.training)
