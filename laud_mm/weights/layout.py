"""Where a classifier's checkpoint keeps its parts, and whether it fits a model."""
import re
from dataclasses import dataclass

from .convnext import adapt_convnext
from .safe import CheckpointError

_SHOWN = 5  # keys named in a message
_STEM = re.compile(r'^stem\.(\d+)\.(conv|bn)\.')
# Keys of a classifier in a plain network, which mmpretrain has below `head.`.
CLASSIFIER_KEYS = ('fc.', 'layers.head.')


def add_classifier_prefixes(state_dict, backbone='backbone.'):
    """Rename a plain network's keys to those of an mmpretrain classifier.

    Args:
        state_dict (dict[str, Tensor]): A backbone's keys, and the classifier's
            under 'fc.' (as torchvision has them) or 'layers.head.'; or an
            mmpretrain classifier's already.
        backbone (str): Put before the backbone's keys.

    Returns:
        dict[str, Tensor]: Keys under `backbone` and 'head.'.
    """
    state_dict = adapt_convnext(state_dict)
    if any(key.startswith(('backbone.', 'head.')) for key in state_dict):
        return dict(state_dict)
    return {f'head.{key}' if key.startswith(CLASSIFIER_KEYS) else backbone + key: value
            for key, value in state_dict.items()}


def strip_classifier_prefixes(state_dict):
    """Undo `add_classifier_prefixes`: a plain network's keys."""
    return {key.removeprefix('backbone.').removeprefix('head.'): value
            for key, value in state_dict.items()}


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's keys compare with a model's.

    Attributes:
        missing (tuple[str, ...]): Keys that only the model has.
        unexpected (tuple[str, ...]): Keys that only the checkpoint has.
        mismatched (tuple[str, ...]): Keys of another shape, with both shapes.
    """
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __bool__(self):
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self):
        if self:
            return 'every key fits'
        return '; '.join(
            f'{len(keys)} {kind}: {", ".join(keys[:_SHOWN])}{", ..." * (len(keys) > _SHOWN)}'
            for kind, keys in vars(self).items() if keys)


def rename_keys(state_dict, own):
    """Rename a backbone's keys of other spellings.

    Maskers of layer skipping were called `spatial` as those of patches are. mmpretrain's
    ResNet-C and D name their stem otherwise, and have no pool, and so other indices, in a
    shortcut that pools nothing. Its ConvNeXt's names differ, see `adapt_convnext`.

    Args:
        state_dict (dict[str, Tensor]): A backbone's weights.
        own (Collection[str]): The backbone's keys.

    Returns:
        dict[str, Tensor]: The weights, with the backbone's keys where it has such.
    """
    state_dict = adapt_convnext(state_dict)

    def name(key):
        block, _, rest = key.partition('.downsample.')
        conv = f'{block}.downsample.0.weight'
        if rest and conv in state_dict and conv not in own:
            shifted = f'{block}.downsample.{int(rest[0]) + 1}{rest[1:]}'
            return shifted if shifted in own else key
        for renamed in (key.replace('.masker.spatial.', '.masker.layer.'), name_stem(key)):
            if key not in own and renamed in own:
                return renamed
        return key
    return {name(key): value for key, value in state_dict.items()}


def name_stem(key):
    """A key of mmpretrain's deep stem as we name it; others as they are."""
    return _STEM.sub(lambda match: f'stem.{3 * int(match[1]) + (match[2] == "bn")}.', key)


def name_as_mmpretrain(state_dict):
    """Undo what `rename_keys` does to the static part of mmpretrain's ResNet-C and D."""
    def name(key):
        stem = re.match(r'stem\.(\d+)\.', key)
        if stem and 'stem.6.weight' in state_dict:
            layer, kind = divmod(int(stem[1]), 3)
            return f'stem.{layer}.{("conv", "bn")[kind]}.{key[stem.end():]}'
        block, _, rest = key.partition('.downsample.')
        if rest and block == 'layer1.0' and f'{block}.downsample.2.weight' in state_dict:
            return f'{block}.downsample.{int(rest[0]) - 1}{rest[1:]}'
        return key
    return {name(key): value for key, value in state_dict.items()}


def compare_keys(state_dict, model):
    """Compare a checkpoint with a model.

    Args:
        state_dict (dict[str, Tensor]): The checkpoint's weights.
        model (nn.Module): The model.

    Returns:
        Fit: What differs. Batch norms' `num_batches_tracked`, which old
        checkpoints lack and nothing here reads, is not missed.
    """
    own = model.state_dict()
    state_dict = rename_keys(state_dict, own)
    missing = [k for k in own if k not in state_dict and not k.endswith('num_batches_tracked')]
    return Fit(tuple(missing), tuple(k for k in state_dict if k not in own), tuple(
        f'{k} {tuple(v.shape)} for {tuple(own[k].shape)}' for k, v in state_dict.items()
        if k in own and v.shape != own[k].shape))


def load_exactly(model, state_dict, source):
    """Load weights that must fit completely.

    Args:
        model (nn.Module): Filled; untouched if the weights do not fit.
        state_dict (dict[str, Tensor]): Weights.
        source (str): Named in the error.

    Raises:
        CheckpointError: Naming missing, unexpected and mismatched keys.
    """
    fit = compare_keys(state_dict, model)
    if not fit:
        raise CheckpointError(f'{source} does not fit: {fit}')
    model.load_state_dict(state_dict, strict=False)
