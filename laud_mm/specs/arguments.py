"""Checks of user arguments: the error names the field, the value and what is allowed."""
from collections.abc import Mapping
from typing import Any

# What is skipped: a paradigm, several, None, or a list of such per stage.
Paradigm = Any


def check_choice(field, value, choices):
    """Return `value`, or raise ValueError if it is not one of `choices`."""
    if value not in choices:
        raise ValueError(f'{field} must be one of {", ".join(map(repr, choices))}, got {value!r}')
    return value


def check_positive_int(field, value):
    """Return `value`, or raise ValueError if it is not a positive int."""
    if not _is_valid(value, None):
        raise ValueError(f'{field} must be a positive int, got {value!r}')
    return value


def check_fraction(field, value, low=0.0, high=1.0):
    """Return `value` as a float, or raise ValueError if it is not within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f'{field} must be a number from {low:g} to {high:g}, got {value!r}')
    return float(value)


def _is_valid(value, choices):
    if choices is not None:
        return value in choices
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def per_stage(field, value, num_stages, choices=None, of=None):
    """Expand a setting to one value per stage.

    Args:
        field (str): Name of the setting, for the error.
        value: One value for all stages, or a sequence with one per stage.
        num_stages (int): Number of values returned.
        choices (Sequence, optional): Allowed values; default: positive ints.
        of (int, optional): A longer length that is allowed too; the first
            `num_stages` values are used.

    Returns:
        tuple: `num_stages` values.

    Raises:
        ValueError: If the length or a value is wrong.
    """
    lengths = sorted({num_stages, of or num_stages})
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * num_stages
    if len(values) not in lengths or not all(_is_valid(v, choices) for v in values):
        what = ('positive ints' if choices is None
                else 'values of ' + ', '.join(map(repr, choices)))
        length = ' or '.join(map(str, lengths))
        shown = values if isinstance(value, (list, tuple)) else value
        raise ValueError(f'{field} must be {length} {what} (or one for all stages), got {shown!r}')
    return values[:num_stages]


def paradigm_set(paradigm, allowed):
    """What is skipped, in the order of `allowed`.

    Args:
        paradigm (str | None | Collection[str]): One paradigm, several in a tuple or a set or
            joined by '+', or None; 'both' is an old spelling of 'spatial+channel'.
        allowed (Sequence[str]): The paradigms that there are.

    Returns:
        tuple[str, ...]: Empty where nothing is skipped.

    Raises:
        ValueError: For a paradigm that is not allowed, or named twice.
    """
    names = paradigm
    if isinstance(paradigm, str):
        names = 'spatial+channel' if paradigm == 'both' and 'spatial' in allowed else paradigm
        names = names.split('+')
    elif paradigm is None:
        names = ()
    if not (isinstance(names, (list, tuple, set, frozenset))
            and all(name in allowed for name in names) and len(set(names)) == len(names)):
        raise ValueError(f'paradigm must be one of {", ".join(map(repr, allowed))}, a tuple or '
                         f'set of several of them, or None, got {paradigm!r}')
    return tuple(name for name in allowed if name in names)


def paradigms_per_stage(paradigm, num_stages, allowed, of=None):
    """Expand a paradigm to one set per stage.

    Args:
        paradigm: What every stage skips, see `paradigm_set`, or a list with what each stage
            skips. A tuple that is no set of paradigms is read as such a list (old spelling).
        num_stages (int): Number of stages.
        allowed (Sequence[str]): The paradigms that there are.
        of (int, optional): A longer length of the list that is allowed too.

    Returns:
        list[tuple[str, ...]]: See `paradigm_set`.

    Raises:
        ValueError: For a paradigm that is not allowed, or a list of another length.
    """
    listed = isinstance(paradigm, list)
    if isinstance(paradigm, tuple):
        listed = None in paradigm or len(set(paradigm)) < len(paradigm) or any(
            isinstance(one, (list, tuple, set)) or one == 'both' for one in paradigm)
    if not listed:
        return [paradigm_set(paradigm, allowed)] * num_stages
    lengths = sorted({num_stages, of or num_stages})
    if len(paradigm) not in lengths:
        raise ValueError(f'paradigm must be one for all stages, or a list of '
                         f'{" or ".join(map(str, lengths))}, one per stage, got {paradigm!r}')
    return [paradigm_set(one, allowed) for one in paradigm[:num_stages]]


def type_name(config: Mapping) -> str:
    """Name of a config's type, without its scope or module; types are strings or classes."""
    kind = config.get('type')
    return kind.__name__ if isinstance(kind, type) else str(kind).rsplit('.', 1)[-1]
