"""A paradigm is a set of what is skipped; a list says it per stage; old spellings still work."""
import pytest

from laud_mm.specs import PARADIGMS, TRANSFORMER_PARADIGMS, network_spec, t2t_vit_shapes
from laud_mm.specs.arguments import paradigm_set, paradigms_per_stage


@pytest.mark.parametrize('spelled, expected', [
    (None, ()), ('layer', ('layer',)), (('channel', 'spatial'), ('spatial', 'channel')),
    ({'layer', 'channel'}, ('layer', 'channel')), ('spatial+channel', ('spatial', 'channel')),
    ('both', ('spatial', 'channel')), (['spatial'], ('spatial',))],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value))
def test_a_set_has_many_spellings(spelled, expected):
    assert paradigm_set(spelled, PARADIGMS) == expected


@pytest.mark.parametrize('spelled, expected', [
    ('layer', [('layer',)] * 4),
    (('spatial', 'channel'), [('spatial', 'channel')] * 4),
    (['layer', None, ('spatial', 'channel'), 'both'],
     [('layer',), (), ('spatial', 'channel'), ('spatial', 'channel')]),
    # A tuple that is no set is a list: the old spelling.
    (('layer', 'channel', 'spatial', None), [('layer',), ('channel',), ('spatial',), ()]),
    (('layer', 'layer', 'channel', 'both'),
     [('layer',), ('layer',), ('channel',), ('spatial', 'channel')])], ids=str)
def test_a_list_is_per_stage(spelled, expected):
    assert paradigms_per_stage(spelled, 4, PARADIGMS) == expected


def test_transformers_take_the_same_spellings():
    everything = t2t_vit_shapes('t2t_vit_14', TRANSFORMER_PARADIGMS)
    assert t2t_vit_shapes('t2t_vit_14', list(TRANSFORMER_PARADIGMS)) == everything  # as it was
    assert t2t_vit_shapes('t2t_vit_14', 'token+head+layer') == everything
    per_block = t2t_vit_shapes('t2t_vit_14', [None] * 13 + ['head'])
    assert [shape.paradigms for shape in per_block] == [()] * 13 + [('head',)]


@pytest.mark.parametrize('paradigm, message', [
    ('rows', "must be one of 'layer', 'spatial', 'channel'.*got 'rows'"),
    (('layer', 'rows'), 'must be one of'), (3, 'must be one of'),
    (['layer'] * 3, 'or a list of 4, one per stage'), (['rows'] * 4, "got 'rows'")], ids=str)
def test_what_is_none_is_named(paradigm, message):
    with pytest.raises(ValueError, match=message):
        network_spec('resnet50', (64, 64), paradigm)
