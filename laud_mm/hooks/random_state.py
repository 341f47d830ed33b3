"""Random-number state in checkpoints, so that a resumed training goes on as if never stopped."""
import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_world_size


def capture():
    """The state of every generator that training draws from, in types that load safely."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, own, gauss = random.getstate()
    state = dict(torch=torch.get_rng_state(),
                 numpy=[kind, torch.from_numpy(keys.astype(np.int64)), *rest],
                 python=[version, torch.tensor(own, dtype=torch.int64), gauss])
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state_all()
    return state


def restore(state):
    """Put the generators back to what `capture` returned."""
    torch.set_rng_state(state['torch'].cpu())
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    version, own, gauss = state['python']
    random.setstate((version, tuple(own.tolist()), gauss))
    if torch.cuda.is_available() and len(state.get('cuda', ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([own.cpu() for own in state['cuda']])


class RandomState:
    """Keeps the random-number state of a training over checkpoints and validations.

    With several processes nothing is kept: only one of them writes, and each has its own.
    With workers, what these draw is seeded from the state, but not where they were in it.
    """

    def __init__(self):
        self._resumed = self._before_val = None

    def save(self, checkpoint):
        """Add the state to a checkpoint."""
        if get_world_size() == 1:
            checkpoint['random_state'] = capture()

    def load(self, checkpoint):
        """Note the state of a checkpoint that training resumes from."""
        self._resumed = checkpoint.get('random_state') if get_world_size() == 1 else None

    def begin_epoch(self, loop):
        """Put the state of the checkpoint back, before the first new batch is drawn."""
        state, self._resumed = self._resumed, None
        if state is None:
            return
        if hasattr(loop, 'dataloader_iterator'):
            # An iteration-based loop first draws again what was trained on, to pass over it;
            # newer ones have the sampler skip it.
            drawn = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else loop.iter
            loop.dataloader_iterator = _RestoringIterator(loop.dataloader_iterator, drawn, state)
        else:
            restore(state)

    def begin_val(self):
        """Remember the state: what a validation draws must not change the training."""
        self._before_val = capture()

    def end_val(self):
        """Go on where `begin_val` was."""
        restore(self._before_val)


class _RestoringIterator(Iterator):
    """Restores a state before the batch after the first `skip`."""

    def __init__(self, batches, skip, state):
        self._batches, self._skip, self._state = batches, skip, state

    def __next__(self):
        if self._skip == 0:
            # Making an iterator draws a seed, which the uninterrupted training did long ago.
            getattr(self._batches, '_ensure_iterator', lambda: None)()
            restore(self._state)
        self._skip -= 1
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)
