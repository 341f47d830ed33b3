import pytest
from mmengine.config import Config

from laud_mm.utils.run import (
    DataError,
    check_data,
    check_teacher,
    enable_amp,
    load_config,
    use_cpu_processes,
)

CONFIG = """
model = dict(backbone=dict(type='laud_mm.LAUDResNet', paradigm='layer'))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture
def data(tmp_path):
    """A data set with annotations/train.json, train/, val/, but no val.json."""
    for folder in ('annotations', 'train', 'val'):
        (tmp_path / 'set' / folder).mkdir(parents=True)
    (tmp_path / 'set' / 'annotations' / 'train.json').write_text('{}')
    return tmp_path / 'set'


def dataset(root, split, **kwargs):
    return dict(type='CocoDataset', data_root=f'{root}/', ann_file=f'annotations/{split}.json',
                data_prefix=dict(img=f'{split}/'), **kwargs)


def check(*datasets):
    """Check one dataloader per dataset, called 'loader0', 'loader1', ..."""
    loaders = {f'loader{i}': dict(batch_size=2, dataset=d) for i, d in enumerate(datasets)}
    check_data(Config(loaders), list(loaders))


def missing_of(*datasets):
    """The paths that checking the datasets reports."""
    with pytest.raises(DataError) as caught:
        check(*datasets)
    return [line[2:].split(': ', 1)[1] for line in str(caught.value).splitlines()
            if line.startswith('- ')]


def test_a_config_gets_overrides_launcher_and_a_work_dir_of_its_name(config):
    cfg = load_config(str(config), {'model.backbone.paradigm': 'channel'}, launcher='pytorch')
    assert cfg.model.backbone == dict(type='laud_mm.LAUDResNet', paradigm='channel')
    assert (cfg.launcher, cfg.work_dir) == ('pytorch', 'work_dirs/tiny')


def test_without_arguments_a_config_stays_as_it_is(config):
    cfg = load_config(config)
    assert cfg.launcher == 'none'
    assert cfg.model == Config.fromfile(config).model


def test_the_work_dir_of_the_command_line_beats_that_of_the_config(config):
    config.write_text(CONFIG + "work_dir = 'mine'\n")
    assert load_config(config).work_dir == 'mine'
    assert load_config(config, {'work_dir': 'option'}).work_dir == 'option'
    assert load_config(config, {'work_dir': 'option'}, work_dir='argument').work_dir == 'argument'


@pytest.mark.parametrize('name', ['absent.py', '.'], ids=['absent', 'folder'])
def test_a_config_that_is_no_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f'config must be an existing file, got {tmp_path}'):
        load_config(str(tmp_path / name))


def test_amp_changes_the_wrapper_and_keeps_the_optimizer(config):
    cfg = load_config(config)
    enable_amp(cfg)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic',
                                     optimizer=dict(type='SGD', lr=0.1))


def test_amp_keeps_a_loss_scale_of_the_config(config):
    cfg = load_config(config, {'optim_wrapper.loss_scale': 512.0})
    enable_amp(cfg)
    assert cfg.optim_wrapper.loss_scale == 512.0


def test_data_that_is_there_passes(data):
    check(dataset(data, 'train'))


def test_a_missing_annotation_file_is_named_with_its_loader_and_a_way_out(data):
    with pytest.raises(DataError) as caught:
        check(dataset(data, 'train'), dataset(data, 'val'))
    missing = [line for line in str(caught.value).splitlines() if line.startswith('- ')]
    assert missing == [f'- loader1: {data}/annotations/val.json']
    assert 'data_root, ann_file and data_prefix' in str(caught.value)
    assert '--cfg-options' in str(caught.value)


def test_every_missing_file_and_folder_is_named_at_once(data):
    assert missing_of(dataset(data, 'test'), dataset(data, 'val')) == [
        f'{data}/annotations/test.json', f'{data}/test', f'{data}/annotations/val.json']


@pytest.mark.parametrize('wrap', [
    lambda inner: dict(type='RepeatDataset', times=2, dataset=inner),
    lambda inner: dict(type='ConcatDataset', datasets=[inner]),
    lambda inner: dict(type='ConcatDataset', datasets=[
        dict(type='RepeatDataset', times=2, dataset=inner)]),
], ids=['repeat', 'concat', 'concat-repeat'])
def test_wrapped_datasets_are_checked(data, wrap):
    check(wrap(dataset(data, 'train')))
    assert missing_of(wrap(dataset(data, 'val'))) == [f'{data}/annotations/val.json']


def test_every_part_of_a_concatenation_is_checked(data):
    parts = [dataset(data, 'train'), dataset(data, 'test'), dataset(data, 'val')]
    assert missing_of(dict(type='ConcatDataset', datasets=parts)) == [
        f'{data}/annotations/test.json', f'{data}/test', f'{data}/annotations/val.json']


def test_an_absolute_annotation_file_ignores_the_root(data):
    there = dict(type='CocoDataset', data_root='nowhere',
                 ann_file=str(data / 'annotations' / 'train.json'))
    check(there)
    assert missing_of(dict(there, ann_file='/nowhere/a.json')) == ['/nowhere/a.json']


def test_a_prefix_may_be_a_string_as_in_mmpretrain(data):
    (data / 'train' / 'cat').mkdir()
    images = dict(type='CustomDataset', data_root=str(data), ann_file='', data_prefix='train')
    check(images)
    assert missing_of(dict(images, data_prefix='test')) == [f'{data}/test']


def classes_of(root, split, **kwargs):
    return dict(type='ImageNet', data_root=str(root), split=split, **kwargs)


def check_classes(count, *datasets):
    loaders = {f'loader{i}': dict(dataset=d) for i, d in enumerate(datasets)}
    check_data(Config(dict(model=dict(head=dict(num_classes=count)), **loaders)), list(loaders))


def test_class_folders_of_a_split_pass(data):
    for name in ('cat', 'dog'):
        (data / 'train' / name).mkdir()
    check_classes(2, classes_of(data, 'train'))
    check_classes(2, dict(type='mmpretrain.CustomDataset', data_root=str(data),
                          data_prefix=dict(img_path='train')))


@pytest.mark.parametrize('root', ['/nowhere', None])
def test_missing_splits_are_named(data, root):
    root = root or data
    expected = ['/nowhere', '/nowhere/test'] if root == '/nowhere' else [f'{data}/test']
    assert missing_of(classes_of(root, 'test')) == expected


class ImageNet:
    """Stands for mmpretrain's: types may be classes."""


@pytest.mark.parametrize('folders', [0, 1, 3])
@pytest.mark.parametrize('kind', ['ImageNet', ImageNet], ids=['name', 'class'])
def test_class_folders_must_be_as_many_as_the_models_classes(data, folders, kind):
    for index in range(folders):
        (data / 'train' / str(index)).mkdir()
    with pytest.raises(DataError, match=f'{data}/train has {folders} class folders, the model 2 '
                                        'classes: set model.head.num_classes'):
        check_classes(2, dict(classes_of(data, 'train'), type=kind))


def test_a_list_of_images_needs_no_class_folders(data):
    (data / 'meta').mkdir()
    (data / 'meta' / 'train.txt').write_text('a.png 0\n')
    check_classes(2, classes_of(data, 'train'))
    check_classes(2, dict(type='CustomDataset', data_root=str(data), data_prefix='val',
                          ann_file='meta/train.txt'))


def test_a_teachers_checkpoint_must_be_there(tmp_path):
    def with_teacher(checkpoint):
        return Config(dict(model=dict(teacher=dict(checkpoint=str(checkpoint)))))
    with pytest.raises(DataError, match='got .*absent.pth: train or convert the static net first'):
        check_teacher(with_teacher(tmp_path / 'absent.pth'))
    (tmp_path / 'there.pth').touch()
    check_teacher(with_teacher(tmp_path / 'there.pth'))
    check_teacher(with_teacher('torchvision://resnet50'))
    check_teacher(Config(dict(model=dict())))


@pytest.mark.parametrize('remote', [
    dict(backend_args=dict(backend='petrel')),
    dict(data_root=None, ann_file='https://host/a.json', data_prefix=dict(img='s3://bucket/a')),
    dict(data_root='s3://bucket/coco'),
], ids=['backend', 'address', 'root'])
def test_data_of_a_remote_backend_is_not_looked_for(remote):
    check(dict(dataset('nowhere', 'train'), **remote))


def test_absent_loaders_are_skipped(data):
    cfg = Config(dict(train_dataloader=dict(dataset=dataset(data, 'train')), val_dataloader=None))
    check_data(cfg, ['train_dataloader', 'val_dataloader', 'test_dataloader'])


@pytest.mark.parametrize(('launcher', 'gpu', 'starts'), [
    ('pytorch', False, True), ('pytorch', True, False), ('none', False, False),
    ('slurm', False, False)])
def test_cpu_processes_are_for_the_pytorch_launcher_without_a_gpu(
        config, monkeypatch, launcher, gpu, starts):
    backends = []
    monkeypatch.setattr('torch.cuda.is_available', lambda: gpu)
    monkeypatch.setattr('torch.distributed.init_process_group', backends.append)
    cfg = load_config(config, launcher=launcher)
    use_cpu_processes(cfg)
    assert backends == ['gloo'] * starts
    assert ('model_wrapper_cfg' in cfg) == starts
    if starts:
        assert cfg.model_wrapper_cfg.device_ids is None


def test_cpu_processes_keep_a_model_wrapper_of_the_config(config, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.distributed.init_process_group', lambda backend: None)
    cfg = load_config(config, {'model_wrapper_cfg.type': 'Mine'}, launcher='pytorch')
    use_cpu_processes(cfg)
    assert cfg.model_wrapper_cfg == dict(type='Mine')
