"""Checks of user arguments: the error names the field, the value and what is allowed."""


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
