"""The history of figures: what a release adds, and what is said to have moved."""
import importlib.util
import json

import pytest

from ..conftest import ROOT

spec = importlib.util.spec_from_file_location('history', ROOT / 'benchmarks' / 'history.py')
history = importlib.util.module_from_spec(spec)
spec.loader.exec_module(history)


def write_results(folder, ratio, deployed=0.7, **versions):
    row = dict(network='resnet50', paradigm='layer', rate=0.5, batch=1, size=[224, 224],
               granularity=None, ratio_to_fastest_static=ratio, fastest_static='openvino_fp32',
               ratios=dict(static=0.5, compiled=0.6, openvino_fp32=ratio),
               deployed_ratio_to_fastest_static=deployed)
    stamp = dict(name='Some CPU', threads=2, torch='2.11.0+cpu', precision='fp32',
                 runtimes=dict(openvino='2026.4.0-1-abc', **versions))
    folder.mkdir(exist_ok=True)
    (folder / 'backbones.json').write_text(json.dumps(dict(stamp=stamp, results=[row])))
    return folder


def test_a_release_adds_its_ratios_with_precision_cpu_and_versions(tmp_path, capsys):
    results, path = write_results(tmp_path / 'results', 0.8), tmp_path / 'history.csv'
    (results / 'rows.json').write_text('{"rows": []}')
    for _ in range(2):  # the second time replaces
        history.main(['--add', '1.0', '--results', str(results), '--history', str(path)])
    rows = history.read_history(path)
    assert [(row['figure'], float(row['value'])) for row in rows] == [
        ('resnet50 224x224 layer batch 1 rate 0.5 deployed over all static', 0.7),
        ("resnet50 224x224 layer batch 1 rate 0.5 eager over PyTorch's static", 0.6),
        ('resnet50 224x224 layer batch 1 rate 0.5 eager over all static', 0.8)]
    assert {(row['release'], row['precision'], row['cpu'], row['threads'], row['versions'])
            for row in rows} == {('1.0', 'fp32', 'Some CPU', '2',
                                  'torch 2.11.0+cpu openvino 2026.4.0')}
    assert '3 figures of 1.0: nothing to compare with' in capsys.readouterr().out


@pytest.mark.parametrize('after, moved', [(0.83, []), (0.85, ['+6%']), (0.75, ['-6%'])])
def test_what_moved_by_more_than_the_threshold_is_said(tmp_path, capsys, after, moved):
    path = str(tmp_path / 'history.csv')
    for release, ratio in (('1.0', 0.8), ('1.1', after)):
        results = write_results(tmp_path / release, ratio)
        history.main(['--add', release, '--results', str(results), '--history', path])
    said = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in said[:-1]] == moved
    assert said[-1] == f'{len(moved)} figures moved by more than 5% from 1.0 to 1.1'


def test_the_mean_is_of_the_files_with_the_most_runtimes(tmp_path):
    results = write_results(tmp_path, 0.8)
    (results / 'older.json').write_text((results / 'backbones.json').read_text().replace(
        '"runtimes": {"openvino": "2026.4.0-1-abc"}', '"runtimes": {}').replace('0.8', '0.4'))
    (results / 'again.json').write_text((results / 'backbones.json').read_text().replace(
        '0.8', '0.6'))
    row = history.read_figures(results)[-1]
    assert row['value'] == '0.7' and row['files'] == 'again.json backbones.json'


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(SystemExit, match='--results must be a folder with result files'):
        history.main(['--add', '1.0', '--results', str(tmp_path)])


def test_the_history_that_is_kept_has_one_row_per_release_and_figure():
    rows = history.read_history(ROOT / 'benchmarks' / 'history.csv')
    keys = [(row['release'], *history.key_of(row)) for row in rows]
    assert len(keys) > 50 and len(set(keys)) == len(keys)
    files = {name for row in rows if row['release'] == rows[-1]['release']
             for name in row['files'].split()}
    assert all((ROOT / 'benchmarks' / 'results' / name).is_file() for name in files)
