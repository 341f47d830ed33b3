"""A classifier that learns from its static counterpart."""
import copy

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS as CLASSIFIER_PARTS
from torch import nn

from laud_mm.models.losses import DistillationLoss
from laud_mm.registry import MODELS
from laud_mm.weights import CheckpointError, load_state_dict
from laud_mm.weights.layout import add_classifier_prefixes, load_exactly

_PARTS = ('backbone', 'neck', 'head')


class Teacher:
    """A frozen network outside the student's module tree.

    So it is in no state dict, is not counted as a backbone of the student, and
    stays in evaluation whatever the student does. Copies of the student (an
    exponential moving average) share it.

    Args:
        checkpoint (str): File or address of the weights: torchvision's or
            mmpretrain's keys.
        parts (dict): Configs of `backbone`, `neck` and `head`.
    """

    def __init__(self, checkpoint, parts):
        self.checkpoint, self.parts = checkpoint, parts
        self.network = None

    def __deepcopy__(self, memo):
        return self

    def load(self):
        """Build the network and load its weights; again only if that failed before.

        Raises:
            CheckpointError: If the weights are missing or do not fit, naming the keys.
        """
        if self.network is not None:
            return
        network = nn.ModuleDict({name: CLASSIFIER_PARTS.build(copy.deepcopy(part))
                                 for name, part in self.parts.items() if part})
        weights = add_classifier_prefixes(self._read())
        load_exactly(network, weights, f"the teacher's checkpoint {self.checkpoint}")
        self.network = network.eval().requires_grad_(False)

    def _read(self):
        if '://' not in self.checkpoint:
            return load_state_dict(self.checkpoint)
        content = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        return content.get('state_dict', content)

    @torch.no_grad()
    def __call__(self, inputs):
        """Compute the (N, classes) logits of a batch (N, 3, H, W)."""
        if self.network is None:
            raise RuntimeError('the teacher has no weights yet: call init_weights() first')
        self.network.to(inputs.device)
        for module in self.network.values():
            inputs = module(inputs)
        return inputs


@MODELS.register_module()
class DistillationClassifier(ImageClassifier):
    """mmpretrain's ImageClassifier with a teacher (method, section 3).

    Adds `loss_kd` = beta * T^2 * KL(teacher / T || student / T) to the losses.
    The teacher is built and loaded by `init_weights`, which a training calls
    and an evaluation does not: evaluation needs no teacher.

    Args:
        backbone (dict): Config of the student's backbone.
        neck (dict, optional): Config of its neck.
        head (dict): Config of its head; called with the neck's features it
            returns logits.
        teacher (dict): `checkpoint`, a file or address with the weights, and
            optionally `backbone`, `neck` and `head`; default: the student's,
            static (`paradigm=None`).
        loss_kd (dict): `weight` (beta) and `temperature` (T).
        init_student (bool): Start the student's static part, head included,
            from the teacher's weights.
        **kwargs: As mmpretrain's ImageClassifier.

    Raises:
        ValueError: If `teacher` has no checkpoint or an unknown key.
        CheckpointError: In `init_weights`, if the weights are missing or do not fit.
    """

    def __init__(self, backbone, neck=None, head=None, teacher=None, loss_kd=None,
                 init_student=True, **kwargs):
        allowed = ('checkpoint', *_PARTS)
        if not isinstance(teacher, dict) or not teacher.get('checkpoint') \
                or set(teacher) - set(allowed):
            raise ValueError(f'teacher must be a dict with a checkpoint and keys among '
                             f'{", ".join(allowed)}, got {teacher!r}')
        # Copied first: building a module takes its type out of the config.
        parts = copy.deepcopy(dict(backbone=static_counterpart(backbone), neck=neck, head=head))
        parts.update((k, teacher[k]) for k in _PARTS if k in teacher)
        super().__init__(backbone=backbone, neck=neck, head=head, **kwargs)
        self.teacher = Teacher(teacher['checkpoint'], parts)
        self.loss_kd = DistillationLoss(**(loss_kd or {}))
        self.init_student = init_student

    def init_weights(self):
        """Initialise the student, load the teacher, and start the one from the other."""
        super().init_weights()
        self.teacher.load()
        if self.init_student:
            self._start_from_teacher()

    def _start_from_teacher(self):
        weights, own = self.teacher.network.state_dict(), self.state_dict()
        foreign = [k for k, v in weights.items() if k not in own or v.shape != own[k].shape]
        if foreign:
            raise CheckpointError('the student cannot start from a teacher of another shape '
                                  f'(init_student=False lets it be): {foreign[:3]}')
        self.load_state_dict(weights, strict=False)

    def loss(self, inputs, data_samples):
        """Compute the head's losses and `loss_kd`.

        Args:
            inputs (Tensor): (N, 3, H, W) images.
            data_samples (list[DataSample]): Their labels.

        Returns:
            dict[str, Tensor]: Losses by name.
        """
        features = self.extract_feat(inputs)
        losses = self.head.loss(features, data_samples)
        losses['loss_kd'] = self.loss_kd(self.head(features), self.teacher(inputs))
        return losses


def static_counterpart(backbone):
    """The config of a backbone that skips nothing."""
    return dict(copy.deepcopy(dict(backbone)), paradigm=None, init_cfg=None)
