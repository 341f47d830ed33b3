"""Folders of data that appear under their names only when they are complete."""
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def build_folder(root: str | Path, settings: dict, write: Callable[[Path], None]) -> Path:
    """Write a set, or find it written.

    Args:
        root (str | Path): Folder of the set. It must not exist, or be this set.
        settings (dict): What the set is, kept in its `settings.json`.
        write (Callable): Called with an empty folder to fill.

    Returns:
        Path: `root`.

    Raises:
        FileExistsError: If `root` exists and is anything else than this set.
    """
    root = Path(root)
    if _is_finished(root, settings):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as scratch:
        folder = Path(scratch) / 'set'
        folder.mkdir()
        write(folder)
        (folder / 'settings.json').write_text(json.dumps(settings) + '\n')
        if not _is_finished(root, settings):  # a second builder may have finished meanwhile
            os.rename(folder, root)
    return root


def _is_finished(root, settings):
    """Tell whether `root` is this very set; raise where something else is in the way."""
    if not os.path.lexists(root):
        return False
    try:
        found = json.loads((root / 'settings.json').read_text())
    except (OSError, ValueError):
        found = None
    if found != settings:
        raise FileExistsError(f'{root} exists and is not {settings}: name another folder or '
                              'remove this one')
    return True
