"""A registry of classes by name, for environments without mmengine, whose own has more."""
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from laud_mm.utils.stack import require_packages


class Registry:
    """Classes by name, built from configs: `type` and arguments.

    Args:
        name (str): What the classes are, for errors.
        scope (str): What may stand before a class's name: `'laud_mm.LAUDResNet'`.
        locations (Sequence[str]): Modules that register classes, imported when one is asked for.
    """

    def __init__(self, name: str, scope: str, locations: Sequence[str] = ()):
        self.name, self.scope, self.locations = name, scope, tuple(locations)
        self.module_dict: dict[str, type] = {}

    def register_module(self) -> Callable[[type], type]:
        """A decorator that registers a class by its name."""
        def register(cls: type) -> type:
            self.module_dict[cls.__name__] = cls
            return cls
        return register

    def get(self, key: str) -> type | None:
        """The class of a name, with or without the scope; None where there is none."""
        scope, _, name = key.rpartition('.')
        if scope not in ('', self.scope):
            return None
        for location in self.locations:
            import_module(location)
        return self.module_dict.get(name)

    def build(self, cfg: dict) -> Any:
        """Build what a config says.

        Args:
            cfg (dict): `type`, a class or its name, and its arguments.

        Raises:
            ModuleNotFoundError: If the type is another package's.
            KeyError: If no such type is registered.
        """
        kind, arguments = cfg['type'], {k: v for k, v in cfg.items() if k != 'type'}
        found = self.get(kind) if isinstance(kind, str) else kind
        if found is None:
            if kind.rpartition('.')[0] not in ('', self.scope):
                require_packages(f'type={kind!r}', 'mmengine')
            raise KeyError(f'type must be a {self.name} of {self.scope}, one of '
                           f'{", ".join(sorted(self.module_dict))}, got {kind!r}')
        return found(**arguments)
