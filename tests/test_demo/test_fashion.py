"""Fashion-MNIST's files, what the study measures of a net, and its table and plot."""
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from laud_mm.demo.digits_report import find_problems
from laud_mm.demo.dynamics import (
    LabelledImages,
    describe,
    freeze_decisions,
    harder_half,
    run_classifier,
)
from laud_mm.demo.fashion import build_fashion, read_idx
from laud_mm.demo.fashion_report import (
    LIMITS,
    above_frontier,
    make_table,
    over_seeds,
    plot_study,
    static_frontier,
)
from laud_mm.models.backbones import LAUDResNet
from laud_mm.models.dynamic import replay
from laud_mm.specs import backbone_spec

ROOT = Path(__file__).resolve().parents[2]


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, '>u4').tobytes() + array.tobytes()


def write_source(folder, train=96, test=32, packed=('train-images-idx3-ubyte',)):
    """A folder of four small IDX files."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, count in (('train', train), ('t10k', test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 120, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), labels * 2 + 4] += 100  # a bright line tells the class
        for name, array in ((f'{split}-images-idx3-ubyte', images),
                            (f'{split}-labels-idx1-ubyte', labels)):
            content = idx(array)
            if name in packed:
                (folder / f'{name}.gz').write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def test_mmpretrain_reads_what_is_written_and_the_split_is_fixed(tmp_path):
    pytest.importorskip('mmpretrain')
    from mmpretrain.datasets import FashionMNIST
    root = build_fashion(tmp_path / 'data', write_source(tmp_path / 'source'))
    sets = {name: FashionMNIST(data_root=str(root), download=False, pipeline=[], **more)
            for name, more in dict(all={}, train=dict(indices=80), val=dict(indices=-16),
                                   test=dict(split='test', test_mode=True)).items()}
    assert [len(own) for own in sets.values()] == [96, 80, 16, 32]
    whole = [sets['all'].get_data_info(i) for i in range(96)]
    parts = [own.get_data_info(i) for own in (sets['train'], sets['val'])
             for i in range(len(own))]
    assert all((a['img'] == b['img']).all() and a['gt_label'] == b['gt_label']
               for a, b in zip(whole, parts, strict=True))
    assert [int(info['gt_label']) for info in whole[:12]] == [*range(10), 0, 1]


def test_a_finished_set_is_reused_and_others_are_left_alone(tmp_path):
    source, root = write_source(tmp_path / 'source'), tmp_path / 'data'
    before = {p: p.stat().st_mtime_ns for p in build_fashion(root, source).rglob('*')}
    assert build_fashion(root, tmp_path / 'nowhere') == root
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    with pytest.raises(FileExistsError, match='exists and is not'):
        build_fashion(source, source)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


LABELS = 't10k-labels-idx1-ubyte'
BROKEN = {
    'missing': (lambda p: (p / LABELS).unlink(), FileNotFoundError,
                f'{LABELS} or {LABELS}.gz beside it, found neither'),
    'cut': (lambda p: cut(p / LABELS), ValueError, 'must hold 32 bytes after its head, got 27'),
    'cut_gzip': (lambda p: cut(p / 'train-images-idx3-ubyte.gz'), ValueError,
                 'must be a complete gzip file'),
    'no_idx': (lambda p: (p / LABELS).write_bytes(b'<html>'), ValueError,
               'in 1 dimensions, got the first bytes 3c 68 74 6d'),
    'too_few': (lambda p: (p / LABELS).write_bytes(idx(np.zeros(31, np.uint8))), ValueError,
                'as many images as labels, got 32 images and 31 labels of t10k'),
    'label': (lambda p: (p / LABELS).write_bytes(idx(np.full(32, 10, np.uint8))), ValueError,
              'labels from 0 to 9, got 10')}


@pytest.mark.parametrize('name', BROKEN)
def test_a_malformed_file_is_explained_and_nothing_is_written(tmp_path, name):
    change, error, message = BROKEN[name]
    change(write_source(tmp_path / 'source'))
    with pytest.raises(error, match=message):
        build_fashion(tmp_path / 'data', tmp_path / 'source')
    assert not (tmp_path / 'data').exists()


def test_the_plain_file_is_taken_before_the_compressed_one(tmp_path):
    for name, content in (('a', idx(np.array([1, 2], np.uint8))),
                          ('a.gz', gzip.compress(idx(np.array([3], np.uint8))))):
        (tmp_path / name).write_bytes(content)
    assert read_idx(tmp_path / 'a', 1)[0] == (2,)
    (tmp_path / 'a').unlink()
    assert read_idx(tmp_path / 'a', 1)[0] == (1,)


class Classifier(nn.Module):
    """A backbone and a linear head, called as mmpretrain's classifier."""

    def __init__(self, paradigm):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = LAUDResNet(50, in_channels=1, base_channels=8, num_stages=2,
                                   out_indices=(1,), paradigm=paradigm, zero_init_residual=False)
        self.head = nn.Linear(64, 10)
        for masker in self.backbone.maskers():
            for own in masker.children():  # about half of the units on, by the image
                for parameter in own.parameters():
                    nn.init.normal_(parameter)

    def forward(self, x, mode):
        return self.head(self.backbone(x)[0].mean((2, 3)))


def some_images(count=24):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, 16, 16, generator=generator) \
        + 3 * torch.randn(count, 1, 1, 1, generator=generator)
    return LabelledImages(images.split(8), torch.arange(count) % 10)


@pytest.mark.parametrize('paradigm', ['layer', 'spatial', 'channel'])
def test_a_net_is_described_beside_its_twin_with_frozen_decisions(paradigm):
    model, images = Classifier(paradigm).eval(), some_images()
    hard = harder_half(torch.arange(24.0))
    row, outcome = describe(model, images, images, hard)
    assert row['accuracy'] == row['masked_accuracy']
    assert row['accuracy'] == pytest.approx(
        (row['easy_accuracy'] + row['hard_accuracy']) / 2)
    assert row['backbone_flops_fraction'] == pytest.approx(
        (row['easy_flops_fraction'] + row['hard_flops_fraction']) / 2)
    assert 0 < row['deciding_blocks'] <= 1 and row['flops_fraction_std'] > 0
    assert row['frozen_flops_fraction'] >= row['backbone_flops_fraction'] - 1e-6
    with freeze_decisions(model.backbone, images, outcome.rates(),
                          row['backbone_flops_fraction']):
        frozen = run_classifier(model, images)
    assert frozen.fractions.std() == 0 and frozen.deciding_share() == 0


def test_frozen_decisions_keep_the_units_that_are_used_most():
    model, images = Classifier('channel').eval(), some_images()
    outcome = run_classifier(model, images)
    rates = outcome.rates()
    with freeze_decisions(model.backbone, images, rates, outcome.fractions.mean().item()):
        frozen = run_classifier(model, images)
    used = torch.cat(list(rates.values()))
    on = torch.cat([own[0] for own in frozen.units.values()])
    assert on.any() and not on.all() and used[on].min() >= used[~on].max()


def test_a_block_that_is_always_on_or_always_off_does_not_decide():
    model, images = Classifier('layer').eval(), some_images(8)
    outcome = run_classifier(model, images)
    always = {name: own.map(torch.ones_like)
              for name, own in model.backbone.record.decisions.items()}
    with replay(model.backbone, always):
        assert run_classifier(model, images).deciding_share() == 0
    assert outcome.deciding_share() == np.mean(
        [0 < own.double().mean() < 1 for own in outcome.units.values()])


def row(name, accuracy, fraction=1.0, static=8.0, paradigm='static', target=1.0):
    return dict(name=name, recipe='r', paradigm=paradigm, target=target, seed=0,
                accuracy=accuracy, masked_accuracy=accuracy, static_mflops=static,
                backbone_flops_fraction=fraction, flops_fraction_std=0.1 * (fraction < 1),
                easy_accuracy=99.0, hard_accuracy=2 * accuracy - 99.0,
                **{'predicted_ms/TX2': fraction * static / 10, 'predicted_ms/V100': 0.1})


def rows_of_a_study():
    return [row('static_s0', 93.0), row('static_s1', 93.2), row('w8_s0', 92.0, static=2.0),
            row('w4_s0', 91.0, static=3.0),
            row('layer_t06_s0', 92.9, 0.6, paradigm='layer', target=0.6)]


def test_seeds_are_averaged_and_the_frontier_leaves_out_what_is_beaten():
    nets = over_seeds(rows_of_a_study())
    assert [(net['name'], net['seeds']) for net in nets] == [
        ('static', 2), ('w8', 1), ('w4', 1), ('layer_t06', 1)]
    assert nets[0]['accuracy'] == pytest.approx(93.1)
    assert nets[0]['accuracy±'] == pytest.approx(0.1)
    assert static_frontier(nets, 'mflops') == [(2.0, 92.0), (8.0, pytest.approx(93.1))]
    # 4.8 M multiply-adds lie at 0.467 of the way from 2 to 8.
    assert above_frontier(nets[3], nets, 'mflops') == pytest.approx(
        92.9 - (92.0 + 1.1 * 2.8 / 6))
    assert above_frontier(nets[3], nets, 'measured_ms/batch_64') is None


def test_the_table_and_the_plot_show_every_net(tmp_path):
    import cv2
    rows = rows_of_a_study()
    lines = make_table(rows).splitlines()
    assert len(lines) == 6 and len({line.count('|') for line in lines}) == 1
    assert lines[2].startswith('| static | 2 | 93.10 ± 0.10 | 8.00 | 1.000')
    assert lines[5].endswith('| +0.39 /  |')
    short = row('ablation_plain_t06_s0', 90.0, 0.5, paradigm='layer', target=0.6)
    assert make_table([*rows, short]).startswith('\n'.join(lines) + '\n\n| network')
    plot_study(rows, tmp_path / 'plot.png')
    assert cv2.imread(str(tmp_path / 'plot.png')).shape[2] == 3
    assert find_problems(rows, LIMITS) == []
    rows[0]['accuracy'] = rows[0]['masked_accuracy'] = 92.4
    assert find_problems(rows, LIMITS) == ['static_s0: accuracy 92.40, below 92.5']


def test_the_study_has_a_teacher_before_its_pupils_and_the_points_that_are_compared():
    pytest.importorskip('mmpretrain')
    from laud_mm.demo.fashion_study import SEEDS, FashionStudy, study_runs
    study = FashionStudy(ROOT / 'configs', None, Path('w'), 'data', {})
    runs = study_runs()
    whole = backbone_spec(study.config(runs[0]).model.backbone, (32, 32)).static_flops
    assert len({run.name for run in runs}) == len({study.recipe(run) for run in runs}) == len(runs)
    for run in runs:
        assert run.teacher is None or runs.index(run.teacher) < runs.index(run)
        cfg = study.config(run)
        assert cfg.randomness.seed == int(run.name[-1])
        if run.paradigm in ('layer', 'spatial', 'channel', 'both'):
            assert cfg.model.backbone.paradigm == run.paradigm
            assert cfg.default_hooks.activation.target == run.target
        if run.config == 'laud_resnet_fashion_static':
            size = cfg.test_dataloader.dataset.pipeline[0].scale
            flops = backbone_spec(cfg.model.backbone, (size, size)).static_flops
            assert (flops < whole) == (not run.name.startswith('static'))
    names = {run.name for run in runs}
    assert {f'{paradigm}_t{target}_s0' for paradigm in ('layer', 'spatial', 'channel', 'both')
            for target in ('03', '04', '06', '08')} <= names
    assert {f'{paradigm}_t06_s{seed}' for paradigm in ('layer', 'spatial', 'channel')
            for seed in SEEDS} <= names
    smaller = {run.name.rsplit('_s', 1)[0] for run in runs if run.paradigm == 'static'}
    assert len(smaller - {'static'}) >= 8
    assert len(study_runs(quick=True)) == 6


TINY = {'train_dataloader.dataset.indices': 64, 'val_dataloader.dataset.indices': -32,
        'train_dataloader.batch_size': 32, 'model.backbone.num_stages': 2,
        'model.backbone.out_indices': [1], 'model.head.in_channels': 128,
        'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, 'param_scheduler.T_max': 1}


@pytest.mark.slow
def test_the_study_trains_evaluates_and_times_and_knows_what_it_has_done(tmp_path):
    pytest.importorskip('mmpretrain')
    from laud_mm.demo.fashion_study import run_fashion
    where = (ROOT / 'configs', ROOT / 'tools' / 'train.py')
    data = tmp_path / 'data', write_source(tmp_path / 'source')
    names = ['static_s0', 'layer_t06_s0']
    with pytest.raises(ValueError, match='only must name runs among static_s0'):
        run_fashion(*where, tmp_path / 'work', *data, only=['static_s9'])
    table, problems = run_fashion(*where, tmp_path / 'work', *data, jobs=1, only=names,
                                  options=TINY)
    assert len(table.splitlines()) == 4 and any('below 92.5' in one for one in problems)
    content = json.loads((tmp_path / 'work' / 'fashion.json').read_text())
    assert [own['name'] for own in content['rows']] == names
    assert len(content['waiting']) > 50
    for own in content['rows']:
        assert own['measured_ms/batch_64'] > 0 and own['predicted_ms/TX2'] > 0
        assert own['accuracy'] == own['masked_accuracy']
    assert {'deciding_blocks', 'frozen_accuracy', 'hard_accuracy'} <= content['rows'][1].keys()
    assert (tmp_path / 'work' / 'accuracy.png').is_file()
    # Where the results are known, nothing is trained.
    again, _ = run_fashion(*where, tmp_path / 'other', *data, only=names, options=TINY,
                           known=tmp_path / 'work' / 'fashion.json', timing=False)
    assert again == table and not list((tmp_path / 'other').glob('*/*.pth'))
    # Another recipe in the same place is refused.
    with pytest.raises(RuntimeError, match='static_s0 was made by another recipe'):
        run_fashion(*where, tmp_path / 'work', *data, only=names,
                    options={**TINY, 'train_dataloader.batch_size': 16})
