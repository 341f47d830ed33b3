"""Entry points for torch.hub: one per network, for the backbone with what it skips.

    torch.hub.load('/path/to/laud_mm', 'laud_resnet50', source='local', paradigm='spatial')

torch and numpy are enough. `python setup.py build_ext --inplace` in the folder compiles the
operations; without them the references serve, slower, and say so.
"""
from laud_mm.framework import quiet_initialisation as _quiet_initialisation
from laud_mm.registry import MODELS as _MODELS
from laud_mm.specs import NETWORKS as _NETWORKS
from laud_mm.weights.published import published_urls as _published_urls

dependencies = ['torch', 'numpy']


def _entry_point(network, family):
    def entry_point(pretrained=False, paradigm='layer', **arguments):
        config = dict(family.defaults(network), type=f'laud_mm.{family.backbone}',
                      paradigm=paradigm, **arguments)
        if pretrained:
            config['init_cfg'] = dict(type='Pretrained', checkpoint=_published_urls(network)[1])
        backbone = _MODELS.build(config)
        with _quiet_initialisation():
            backbone.init_weights()
        return backbone
    entry_point.__name__ = f'laud_{network.replace(".", "_")}'
    entry_point.__doc__ = f"""{family.title} {network}, a backbone.

    Args:
        pretrained (bool): Start from torchvision's static ImageNet weights (V2); maskers are
            fresh and leave everything on.
        paradigm (str | None | Collection): What is skipped, of {", ".join(family.paradigms)}.
        **arguments: Of the backbone.
    """
    return entry_point


for _network, _family in _NETWORKS.items():
    _entry = _entry_point(_network, _family)
    globals()[_entry.__name__] = _entry
del _entry
