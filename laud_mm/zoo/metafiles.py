"""Metafiles of the families and the index, as mim and the model-index tools read them."""
import re
from collections.abc import Sequence
from itertools import groupby

import yaml

from .entries import DATA, Entry
from .figures import Figures

_PAPER = {'URL': 'https://arxiv.org/abs/2308.15949',
          'Title': 'Latency-aware Unified Dynamic Networks for Efficient Image Recognition'}
HEADER = '# Written by tools/make_model_zoo.py: do not edit.\n'


def make_metafiles(entries: Sequence[Entry], figures: dict[str, Figures]) -> dict[str, str]:
    """Write a metafile per family, and the index that imports them.

    No results are listed, because no model was trained on ImageNet or COCO here.

    Args:
        entries (Sequence[Entry]): The zoo's models.
        figures (dict[str, Figures]): By config name.

    Returns:
        dict[str, str]: Path in the repository to YAML.
    """
    files = {}
    for family, own in groupby(sorted(entries, key=lambda e: (e.family, e.name)),
                               key=lambda e: e.family):
        name = re.sub(r'[^a-z0-9]+', '_', family.lower()).strip('_')
        files[f'metafiles/{name}.yml'] = _dump({
            'Collections': [{'Name': family, 'Paper': _PAPER, 'README': 'model_zoo.md'}],
            'Models': [_model(entry, figures[entry.name]) for entry in own]})
    files['model-index.yml'] = _dump({'Import': sorted(files)})
    return files


def _model(entry, own):
    return {'Name': entry.name, 'In Collection': entry.family,
            'Config': f'configs/{entry.name}.py',
            'Metadata': {'Training Data': DATA[entry.data],
                         'FLOPs': round(own.flops_g * 1e9),
                         'Parameters': round(own.parameters_m * 1e6)}}


def _dump(content):
    return HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
