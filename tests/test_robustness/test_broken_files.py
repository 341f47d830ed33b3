"""Broken checkpoints, annotations and work dirs are named before work starts."""
import errno
import io
import json

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from laud_mm.checkpoints import CheckpointError, find_resumable, load_state_dict
from laud_mm.utils import run as run_module
from laud_mm.utils.run import DataError, WorkDirError, check_data, check_work_dir

QUICK = settings(max_examples=60, deadline=None, derandomize=True,
                 suppress_health_check=list(HealthCheck))


def checkpoint_bytes():
    buffer = io.BytesIO()
    torch.save(dict(state_dict=dict(a=torch.arange(40.0), b=torch.ones(3, 3))), buffer)
    return buffer.getvalue()


WHOLE = checkpoint_bytes()
ANNOTATIONS = json.dumps(dict(images=[dict(id=1, file_name='a.png')], annotations=[],
                              categories=[dict(id=1, name='cat')])).encode()


@QUICK
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_cut_checkpoint_is_refused_and_never_resumed(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp('cut')
    (folder / 'epoch_1.pth').write_bytes(WHOLE)
    (folder / 'epoch_2.pth').write_bytes(WHOLE[:cut])
    with pytest.raises(CheckpointError, match='epoch_2.pth'):
        load_state_dict(folder / 'epoch_2.pth')
    assert find_resumable(folder).name == 'epoch_1.pth'


@QUICK
@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_gives_weights_or_a_clear_error(tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp('changed') / 'x.pth'
    path.write_bytes(WHOLE[:place] + bytes([value]) + WHOLE[place + 1:])
    try:
        assert all(torch.is_tensor(v) for v in load_state_dict(path).values())
    except CheckpointError as error:
        assert str(path) in str(error)


@QUICK
@given(content=st.binary(max_size=200))
@example(content=b'')
def test_arbitrary_bytes_are_no_checkpoint(tmp_path_factory, content):
    path = tmp_path_factory.mktemp('noise') / 'x.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='x.pth'):
        load_state_dict(path)


def data_config(folder):
    return Config(dict(train_dataloader=dict(dataset=dict(
        type='CocoDataset', data_root=str(folder), ann_file='a.json'))))


@QUICK
@given(cut=st.integers(0, len(ANNOTATIONS) - 2))
def test_cut_annotations_are_named_before_anything_starts(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp('annotations')
    (folder / 'a.json').write_bytes(ANNOTATIONS[:cut])
    inner = ANNOTATIONS[:cut].rstrip()[-1:] in (b'}', b']')
    if not inner:  # cut right behind an inner bracket looks whole without being read
        with pytest.raises(DataError, match='a.json is no complete JSON file'):
            check_data(data_config(folder), ['train_dataloader'])
    (folder / 'a.json').write_bytes(ANNOTATIONS)
    check_data(data_config(folder), ['train_dataloader'])


@pytest.mark.parametrize('place', ['/proc/here', '{tmp}/file', '{tmp}/file/below'])
def test_a_work_dir_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(WorkDirError, match='work_dir must be a folder that can be written to'):
        check_work_dir(Config(dict(work_dir=place.format(tmp=tmp_path))))
    assert (tmp_path / 'file').read_text() == 'mine'


def test_a_full_disk_is_found_before_work_starts(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(run_module.os, 'fsync', fsync)
    with pytest.raises(WorkDirError, match='No space left on device'):
        check_work_dir(Config(dict(work_dir=str(tmp_path))))
    assert not list(tmp_path.iterdir())


def test_a_good_work_dir_is_made_and_left_empty(tmp_path):
    check_work_dir(Config(dict(work_dir=str(tmp_path / 'a' / 'b'))))
    assert not list((tmp_path / 'a' / 'b').iterdir())
