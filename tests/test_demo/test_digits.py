"""The digits as class folders, and the study's table and plot."""
from collections import Counter

import cv2
import numpy as np
import pytest

from laud_mm.demo.digits import CLASSES, build_digits, load_images, split_indices
from laud_mm.demo.digits_report import find_problems, make_table, plot_study


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return build_digits(tmp_path_factory.mktemp('data') / 'digits', 16)


def test_every_image_is_in_one_split_under_its_class(digits):
    images, labels = load_images()
    seen = Counter()
    for path in digits.glob('*/*/*.png'):
        assert CLASSES[labels[int(path.stem)]] == path.parent.name
        seen[path.stem] += 1
    assert len(seen) == len(images) == 1797 and set(seen.values()) == {1}
    counts = Counter(path.parts[-3] for path in digits.glob('*/*/*.png'))
    assert counts == {'train': 1343, 'val': 454}


def test_validation_is_the_last_quarter_of_every_class():
    labels = np.array([1, 0, 1, 1, 0, 1, 0, 0])
    split = split_indices(labels)
    assert split['train'].tolist() == [0, 1, 2, 3, 4, 6] and split['val'].tolist() == [5, 7]


def test_images_are_the_digits_enlarged(digits):
    images, labels = load_images()
    path = next(digits.glob(f'*/{labels[0]}/0000.png'))
    large = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert large.shape == (16, 16)
    back = large.reshape(8, 2, 8, 2).mean((1, 3))
    assert np.corrcoef(back.ravel(), images[0].ravel())[0, 1] > 0.95


def test_a_finished_set_is_reused_and_others_are_left_alone(digits, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in digits.rglob('*')}
    assert build_digits(digits, 16) == digits
    assert before == {p: p.stat().st_mtime_ns for p in digits.rglob('*')}
    with pytest.raises(FileExistsError, match="'image_size': 24"):
        build_digits(digits, 24)
    with pytest.raises(FileExistsError):
        build_digits(tmp_path)
    with pytest.raises(ValueError, match='image_size must be an int from 8 on, got 4'):
        build_digits(tmp_path / 'small', 4)
    assert not any(tmp_path.iterdir())


def row(name, paradigm, target, accuracy):
    metrics = dict(backbone_flops_fraction=target, backbone_latency_measured_ms=target / 2,
                   backbone_latency_static_ms=0.5, backbone_latency_ratio=target)
    metrics.update({f'backbone_latency_predicted_{k}/TX2': v for k, v in (
        ('ms', 0.2 * target), ('static_ms', 0.2), ('ratio', target))})
    return dict(name=name, paradigm=paradigm, target=target, accuracy=accuracy,
                masked_accuracy=accuracy, flops_fraction_std=0.05, **metrics)


def rows_of_a_study():
    return [row('static', 'static', 1.0, 98.7), row('layer_t06', 'layer', 0.6, 98.5),
            row('layer_t04', 'layer', 0.4, 90.0), row('layer_t06_without_kd', 'layer', 0.6, 97.1)]


def test_only_the_judged_target_with_its_teacher_is_held_to_the_static_accuracy():
    assert find_problems(rows_of_a_study()) == []


@pytest.mark.parametrize('index, change, problem', [
    (0, dict(accuracy=97.9, masked_accuracy=97.9), 'static: accuracy 97.90, below 98.0'),
    (1, dict(accuracy=97.6, masked_accuracy=97.6), 'layer_t06: 1.10 points below the static net'),
    (1, dict(backbone_flops_fraction=0.64), 'layer_t06: FLOPs fraction 0.640 for a target of 0.6'),
    (2, dict(masked_accuracy=90.2), 'layer_t04: the executions differ in accuracy, 90.00 skipping '
                                    'and 90.20 masked')])
def test_what_a_study_must_show_and_does_not_is_said(index, change, problem):
    rows = rows_of_a_study()
    rows[index].update(change)
    assert problem in find_problems(rows)


def test_a_net_that_treats_all_images_alike_is_not_dynamic():
    rows = [dict(row, flops_fraction_std=0.0) for row in rows_of_a_study()]
    assert find_problems(rows) == ['no network computes more for one image than for another']


def test_the_table_and_the_plot_show_every_run(tmp_path):
    rows = rows_of_a_study()
    lines = make_table(rows).splitlines()
    assert len(lines) == 6 and len({line.count('|') for line in lines}) == 1
    assert lines[3].startswith('| layer t06 | 0.6 | 98.50 / 98.50 | 0.600 | 0.050 | 0.300 / 0.500')
    plot_study(rows, tmp_path / 'plot.png')
    assert cv2.imread(str(tmp_path / 'plot.png')).shape[2] == 3
