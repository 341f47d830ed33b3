"""Backbones in folders and on the Hugging Face hub: `save_pretrained` and `from_pretrained`."""
from typing import Any

from laud_mm.utils.stack import require_packages

require_packages('laud_mm.hub', 'huggingface_hub', 'safetensors')

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from laud_mm.framework import quiet_initialisation
from laud_mm.registry import MODELS


class HubBackbone(  # type: ignore[call-arg]  # where the library is not installed
        nn.Module, PyTorchModelHubMixin, library_name='laud_mm',
        repo_url='https://arxiv.org/abs/2308.15949', tags=['laudnet']):
    """A LAUD backbone that is saved with its config: `config.json` and `model.safetensors`.

    `save_pretrained(folder)`, `from_pretrained(folder or repository)` and `push_to_hub` are
    huggingface_hub's. Weights are read from safetensors only, which holds no code.

    Args:
        backbone (dict): Config of a backbone, `type` and arguments, of plain values.

    Attributes:
        backbone (LAUDBackbone): The network.

    Examples:
        >>> from laud_mm.hub import HubBackbone
        >>> net = HubBackbone(dict(type='laud_mm.LAUDResNet', depth=50, paradigm='layer'))
        >>> net.save_pretrained('laud_r50')  # doctest: +SKIP
        >>> net = HubBackbone.from_pretrained('laud_r50')  # doctest: +SKIP
    """

    def __init__(self, backbone: dict):
        super().__init__()
        self._hub_mixin_config = dict(backbone=storable_config(backbone))
        self.backbone = MODELS.build(dict(backbone))
        with quiet_initialisation():
            self.backbone.init_weights()

    def forward(self, x: Tensor) -> tuple:
        """As of the backbone: (N, C, H, W) images to a tuple of its outputs."""
        return self.backbone(x)

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        raise ValueError('weights must be in model.safetensors, found a pickle, which could run '
                         'code: convert it with tools/convert_checkpoint.py')


def storable_config(backbone: dict) -> dict:
    """A backbone's config as JSON keeps it: several paradigms in one string, no `init_cfg`.

    Raises:
        ValueError: For a type that is a class of somewhere else.
    """
    config = {key: value for key, value in backbone.items() if key != 'init_cfg'}
    if not isinstance(config.get('type'), str):
        raise ValueError('backbone.type must be a name, such as laud_mm.LAUDResNet, got '
                         f'{config.get("type")!r}')
    paradigm = config.get('paradigm')
    if isinstance(paradigm, (tuple, set, frozenset)) and all(
            isinstance(one, str) for one in paradigm):
        config['paradigm'] = '+'.join(paradigm)  # JSON has no tuples, and a list is per stage
    return config
