"""Safe reading of checkpoints: weights only, and never a half-written one."""
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from laud_mm.utils.files import replacing
from laud_mm.utils.stack import is_installed

# Where checkpoints keep a state dict; weights before their moving average.
STATE_DICTS = ('state_dict', 'model', 'model_state_dict', 'state_dict_ema', 'ema_state_dict',
               'model_ema', 'ema')


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read safely, or does not fit."""


def load_state_dict(path: str | Path, trust: bool = False) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint file without running any code in it.

    Args:
        path (str | Path): A `.safetensors` file, or a `torch.save` file, see `unwrap_weights`.
        trust (bool): Obey a pickle whatever it does. Only for files whose
            writer is trusted like one's own code.

    Returns:
        dict[str, Tensor]: Names and weights.

    Raises:
        CheckpointError: If the file is missing, broken, holds anything but
            weights and plain values, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'{path} is not a file')
    try:
        if path.suffix == '.safetensors':
            content = _safetensors(path).load_file(path)
        else:
            content = torch.load(path, map_location='cpu', weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f'{path} holds more than weights and is not loaded, because that '
                              f'could run code: {str(error).splitlines()[0]}') from error
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken file makes the readers raise
        raise CheckpointError(f'{path} is not a readable checkpoint: {error}') from error
    content = unwrap_weights(content)
    if not isinstance(content, dict) or not content or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()):
        raise CheckpointError(f'{path} holds no state dict (names and tensors)')
    return content


def unwrap_weights(content: Any) -> Any:
    """The state dict inside a checkpoint, by its module's own names.

    Args:
        content: What a file holds: a state dict, or dicts around one, as runners, timm and
            moving averages write them. Anything else is returned as it is.

    Returns:
        dict[str, Tensor]: Without what DDP, FSDP, torch.compile and averages put before names.
    """
    if not isinstance(content, dict):
        return content
    inner = next((content[key] for key in STATE_DICTS if isinstance(content.get(key), dict)), None)
    if inner is not None:
        return unwrap_weights(inner)
    weights = {}
    for key, value in content.items():
        for prefix in ('_orig_mod.', '_fsdp_wrapped_module.'):
            key = key.replace(prefix, '') if isinstance(key, str) else key
        weights[key] = value
    # A moving average has its model under `module`, and its own counter beside.
    counters = {'steps', 'n_averaged'} & set(weights)
    if weights and all(str(key).startswith('module.') for key in set(weights) - counters):
        weights = {key.removeprefix('module.'): value for key, value in weights.items()
                   if key not in counters}
    return weights


def save_state_dict(state_dict: dict[str, torch.Tensor], path: str | Path) -> None:
    """Write weights so that the file is there complete or not at all.

    Args:
        state_dict (dict[str, Tensor]): Names and weights.
        path (str | Path): A `.safetensors` file, else a `torch.save` file of
            {'state_dict': ...}.

    Raises:
        CheckpointError: If `.safetensors` is asked for and the library is missing.
    """
    path = Path(path)
    writer = _safetensors(path) if path.suffix == '.safetensors' else None
    with replacing(path) as part:
        if writer:
            # The format knows neither views nor shared memory.
            writer.save_file({k: v.contiguous().clone() for k, v in state_dict.items()}, part)
        else:
            torch.save({'state_dict': state_dict}, part)


def _safetensors(path):
    """The library for `.safetensors` files, which is optional."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(f'{path} needs the safetensors library: '
                              'pip install safetensors') from error
    return safetensors.torch


class _UnreadHistory:
    """Stands in for mmengine's HistoryBuffer, so that weights are read without mmengine."""
    min = max = current = mean = None


def _history_class():
    """The class of the log histories in a Runner's checkpoint."""
    if not is_installed('mmengine'):
        return _UnreadHistory
    from mmengine.logging import HistoryBuffer
    return HistoryBuffer


def _history_statistic(owner, name):
    """All that a Runner checkpoint needs of getattr: HistoryBuffer.mean and its like."""
    if owner is not _history_class() or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def allow_runner_types() -> None:
    """Let safe loading read what mmengine's Runner puts into its checkpoints.

    torch >= 2.6 loads weights only; a Runner checkpoint also holds log
    histories. Their types are added to torch's allow-list, and in place of
    getattr, which could run anything, a stand-in that knows four methods.
    """
    import numpy as np
    reconstruct: Any
    scalar: Any
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(t)) for t in ('f2', 'f4', 'f8', 'i4', 'i8', 'u8', 'bool')]
    torch.serialization.add_safe_globals([
        (_history_class(), 'mmengine.logging.history_buffer.HistoryBuffer'),
        np.ndarray, np.dtype, reconstruct, scalar, *dtypes,
        (_history_statistic, 'builtins.getattr'), (_history_statistic, '__builtin__.getattr')])


def is_complete(path):
    """Whether a `torch.save` file was written to its end.

    The zip directory stands at the end of the file, so a cut file has none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def find_resumable(work_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a training.

    Args:
        work_dir (str | Path): The training's folder.

    Returns:
        Path | None: The file that `last_checkpoint` names if it is complete,
        else the complete `epoch_N.pth` or `iter_N.pth` written last.
    """
    work_dir, candidates = Path(work_dir), []
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        name = pointer.read_text().strip()
        # This folder first: it may have been moved or copied since.
        candidates += [work_dir / Path(name).name, Path(name)] if name else []
    steps = [p for p in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+', p.stem)]
    candidates += sorted(steps, key=lambda p: p.stat().st_mtime, reverse=True)
    return next((p for p in candidates if p.is_file() and is_complete(p)), None)
