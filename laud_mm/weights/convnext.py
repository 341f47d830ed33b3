"""Keys of ConvNeXts: mmpretrain's and torchvision's become ours, and back."""
import re

_BLOCK = ((r'block\.0\.', 'depthwise_conv.'), (r'block\.2\.', 'norm.'),
          (r'block\.3\.', 'pointwise_conv1.'), (r'block\.5\.', 'pointwise_conv2.'),
          (r'layer_scale$', 'gamma'))
_OURS = re.compile(r'(?P<start>^|^.*\.)features\.(?P<index>\d+)\.(?P<rest>.*)$')
_STAGE = re.compile(r'(?P<start>^|^.*\.)stages\.(?P<stage>\d+)\.(?P<block>\d+)\.(?P<rest>.*)$')
_DOWN = re.compile(r'(?P<start>^|^.*\.)downsample_layers\.(?P<stage>\d+)\.(?P<rest>.*)$')
_THEIRS = re.compile(r'\bstages\.\d+\.\d+\.depthwise_conv\.weight$')
_KEY = re.compile(r'\bfeatures\.\d+\.\d+\.block\.0\.weight$')


def is_convnext(state_dict):
    """Whether weights are a ConvNeXt's, with whatever names and prefix."""
    return any(_KEY.search(key) or _THEIRS.search(key) for key in state_dict)


def adapt_convnext(state_dict):
    """Give the weights of a ConvNeXt our names: torchvision's, and `norm3` and `fc`.

    Args:
        state_dict (dict[str, Tensor]): Keys of torchvision, mmpretrain or ours, with or without
            a prefix, the classifier's among them.

    Returns:
        dict[str, Tensor]: With our keys; as it was if it is no ConvNeXt's.
    """
    if not is_convnext(state_dict):
        return state_dict
    return dict(_ours(key, value) for key, value in state_dict.items())


def _ours(key, value):
    if (found := re.match(r'(^|.*\.)classifier\.([02])\.(weight|bias)$', key)):
        return found[1] + ('norm3.' if found[2] == '0' else 'fc.') + found[3], value
    if (found := _DOWN.match(key)):
        return f'{found["start"]}features.{2 * int(found["stage"])}.{found["rest"]}', value
    found = _STAGE.match(key)
    if not found:
        return key, value
    rest = found['rest']
    if rest == 'gamma':
        value = value.reshape(-1, 1, 1)
    for ours, theirs in _BLOCK:
        if rest.startswith(theirs):
            rest = ours.replace('\\', '').rstrip('$') + rest[len(theirs):]
            break
    index = 2 * int(found['stage']) + 1
    return f'{found["start"]}features.{index}.{found["block"]}.{rest}', value


def name_as_mmpretrain_convnext(state_dict):
    """The static part of our ConvNeXt with mmpretrain's names; undoes `adapt_convnext`."""
    return dict(_mmpretrain(key, value) for key, value in state_dict.items())


def _mmpretrain(key, value):
    found = _OURS.match(key)
    if not found:
        return key, value
    stage, odd = divmod(int(found['index']), 2)
    if not odd:
        return f'{found["start"]}downsample_layers.{stage}.{found["rest"]}', value
    rest = found['rest']
    if rest.endswith('.layer_scale'):
        value = value.flatten()
    for ours, theirs in _BLOCK:
        rest = re.sub(rf'^(\d+\.){ours}', rf'\g<1>{theirs}', rest)
    return f'{found["start"]}stages.{stage}.{rest}', value


def name_as_torchvision_convnext(state_dict):
    """The static part of our ConvNeXt with torchvision's names."""
    def name(key):
        return re.sub(r'^fc\.', 'classifier.2.', re.sub(r'^norm3\.', 'classifier.0.', key))
    return {name(key): value for key, value in state_dict.items()}
