"""What tools/train.py and tools/test.py share: checks and config edits before any work."""
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from laud_mm.utils.stack import require_packages

require_packages('reading a config', 'mmengine')

from mmengine.config import Config, DictAction


class DataError(FileNotFoundError):
    """Data that a config names is not there."""


class WorkDirError(OSError):
    """The work dir cannot be written to."""


def parse_run_arguments(parser):
    """Add the arguments that all runs share, parse, and set LOCAL_RANK for launchers."""
    parser.add_argument('--work-dir', help='folder of logs, reports and checkpoints')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='overrides, key=value: model.backbone.paradigm=channel')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def load_config(path, cfg_options=None, work_dir=None, launcher='none'):
    """Read a config and apply the command line to it.

    Args:
        path (str): Config file.
        cfg_options (dict, optional): Overrides, as `--cfg-options` gives them.
        work_dir (str, optional): Default: the config's, else work_dirs/<config name>.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.

    Returns:
        Config: Ready for `Runner.from_cfg`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config must be an existing file, got {path}')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(cfg_options or {})
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    return cfg


def use_cpu_processes(cfg):
    """Let `--launcher pytorch` train on CPUs where there is no GPU.

    mmengine picks a GPU per process unless the process group is there before
    it, and wraps the model for one unless told otherwise.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    cfg.setdefault('model_wrapper_cfg', dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False)))


def enable_amp(cfg):
    """Train with automatic mixed precision."""
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def check_work_dir(cfg):
    """Raise WorkDirError if the work dir cannot be made, or nothing can be written into it.

    A probe of 1 MiB also finds a full disk before the training does.
    """
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.work_dir) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise WorkDirError(f'work_dir must be a folder that can be written to, got '
                           f'{cfg.work_dir}: {error.strerror or error}') from error


def _is_cut(path):
    """Whether a JSON annotation file lacks its beginning or its end, as after a broken download."""
    if path.suffix != '.json' or not path.is_file():
        return False
    with open(path, 'rb') as file:
        start = file.read(64).lstrip()
        file.seek(max(path.stat().st_size - 64, 0))
        return start[:1] not in (b'{', b'[') or file.read().rstrip()[-1:] not in (b'}', b']')


def _datasets(dataset):
    """The innermost datasets of a config, inside wrappers such as RepeatDataset."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner is None:
        return [dataset]
    return [d for i in (inner if isinstance(inner, list) else [inner]) for d in _datasets(i)]


def _reads_segmentation(dataset):
    """Whether the pipeline reads the maps under `data_prefix.seg`, which configs inherit freely."""
    return any(step.get('with_seg', 'Panoptic' in str(step['type']))
               for step in dataset.get('pipeline') or ())


def _class_folders(dataset):
    """The folder whose subfolders are a set's classes; None if it tells them in another way."""
    kind, root = dataset.get('type'), str(dataset.get('data_root') or '')
    kind = getattr(kind, '__name__', str(kind)).rsplit('.', 1)[-1]  # types may be classes
    prefix, split = dataset.get('data_prefix') or '', dataset.get('split') or ''
    prefix = prefix.get('img_path', '') if isinstance(prefix, dict) else prefix
    listed = dataset.get('ann_file') or Path(root, 'meta', f'{split}.txt').is_file()
    if kind not in ('ImageNet', 'CustomDataset') or listed or dataset.get('with_label') is False:
        return None
    return Path(root, prefix or split)


def _class_folder_problem(dataset, num_classes):
    """What is wrong with the class folders of a dataset; None if nothing is."""
    folder = _class_folders(dataset)
    if folder is None or '://' in str(folder):
        return None
    if not folder.is_dir():
        return str(folder)
    found = sum(path.is_dir() for path in folder.iterdir())
    if found and num_classes in (None, found):
        return None
    return (f'{folder} has {found} class folders, the model {num_classes} classes: set '
            "model.head.num_classes and the datasets' metainfo.classes, or ann_file")


def check_teacher(cfg):
    """Raise DataError if the model learns from a teacher whose checkpoint file is missing."""
    checkpoint = (cfg.model.get('teacher') or {}).get('checkpoint')
    if checkpoint and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise DataError(f"the teacher's checkpoint must be an existing file, got {checkpoint}: "
                        'train or convert the static net first, or set model.teacher.checkpoint')


def check_data(cfg, loaders):
    """Raise DataError naming every data file or folder of `loaders` that is missing.

    Class folders must also be as many as the model's classes.

    Args:
        cfg (Config): The config.
        loaders (Sequence[str]): Such as 'train_dataloader'; absent ones are skipped.
    """
    missing = []
    num_classes = ((cfg.get('model') or {}).get('head') or {}).get('num_classes')
    for loader in loaders:
        if not cfg.get(loader):
            continue
        for dataset in _datasets(cfg[loader]['dataset']):
            if dataset.get('backend_args'):
                continue  # not local files
            root = str(dataset.get('data_root') or '')
            prefix = dataset.get('data_prefix') or {}
            if isinstance(prefix, dict):
                prefix = [path for kind, path in prefix.items()
                          if kind != 'seg' or _reads_segmentation(dataset)]
            else:
                prefix = [prefix]
            # Without annotation file and prefix, the root itself is all there is to check.
            for part in list(filter(None, [dataset.get('ann_file'), *prefix])) or ['']:
                path = os.path.join(root, part)
                if '://' not in path and not Path(path).exists():
                    missing.append(f'- {loader}: {Path(path)}')
                elif _is_cut(Path(path)):
                    missing.append(f'- {loader}: {path} is no complete JSON file')
            problem = _class_folder_problem(dataset, num_classes)
            if problem and f'- {loader}: {problem}' not in missing:
                missing.append(f'- {loader}: {problem}')
    if missing:
        raise DataError('data that the config names is missing or does not fit:\n'
                        + '\n'.join(missing)
                        + '\nPut it there, or set data_root, ann_file and data_prefix of the '
                        'dataset in the config or with --cfg-options')
