"""The public API is what `__all__` of these packages names: documented and typed."""
import inspect
from importlib import import_module

import pytest

PACKAGES = ('laud_mm.specs', 'laud_mm.latency', 'laud_mm.models.backbones', 'laud_mm.models.losses',
            'laud_mm.models.dynamic',
            'laud_mm.hooks', 'laud_mm.checkpoints', 'laud_mm.deploy')


def own_functions(thing):
    """The public functions of a function or class: itself, or what its body defines."""
    if inspect.isfunction(thing):
        return {thing.__name__: thing}
    if not inspect.isclass(thing):
        return {}
    # Overrides of mmengine's and torch's methods have the types of what they override.
    theirs = [base for base in thing.__mro__ if not base.__module__.startswith('laud_mm')]
    bodies = {name: getattr(value, 'fget', None) or getattr(value, '__func__', value)
              for name, value in vars(thing).items()
              if name == '__init__' or name == '__call__'
              or not name.startswith('_') and not any(hasattr(base, name) for base in theirs)}
    return {f'{thing.__name__}.{name}': body for name, body in bodies.items()
            if inspect.isfunction(body) and body.__module__ == thing.__module__}


def public_functions():
    for package in PACKAGES:
        module = import_module(package)
        for name in module.__all__:
            for path, function in own_functions(getattr(module, name)).items():
                yield pytest.param(function, id=f'{package}.{path}')


@pytest.mark.parametrize('function', public_functions())
def test_every_parameter_of_the_public_api_has_a_type(function):
    parameters = [p for p in inspect.signature(function).parameters.values()
                  if p.name not in ('self', 'cls')]
    untyped = [p.name for p in parameters if p.annotation is p.empty]
    assert not untyped
    if function.__name__ != '__init__':
        assert 'return' in function.__annotations__


@pytest.mark.parametrize('package', PACKAGES)
def test_every_public_name_says_what_it_is(package):
    module = import_module(package)
    things = {name: getattr(module, name) for name in module.__all__}
    undocumented = [name for name, thing in things.items()
                    if (inspect.isclass(thing) or inspect.isfunction(thing))
                    and not inspect.getdoc(thing)]
    assert not undocumented
