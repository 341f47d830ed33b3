"""The digits as class folders, and the study's table and plot."""
from collections import Counter

import cv2
import numpy as np
import pytest

from laud_mm.demo.digits import CLASSES, build_digits, load_images, split_indices
from laud_mm.demo.digits_report import make_table, plot_study


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


def test_the_table_and_the_plot_show_every_run(tmp_path):
    rows = [row('static', 'static', 1.0, 98.7), row('layer_t06', 'layer', 0.6, 98.5),
            row('layer_t06_without_kd', 'layer', 0.6, 98.1)]
    lines = make_table(rows).splitlines()
    assert len(lines) == 5 and len({line.count('|') for line in lines}) == 1
    assert lines[3].startswith('| layer t06 | 0.6 | 98.50 / 98.50 | 0.600 | 0.050 | 0.300 / 0.500')
    plot_study(rows, tmp_path / 'plot.png')
    assert cv2.imread(str(tmp_path / 'plot.png')).shape[2] == 3
