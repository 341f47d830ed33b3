"""tools/gpu_bringup.py: what it does without a GPU, and how it goes on when things fail."""
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from laud_mm.commands import gpu_bringup
from laud_mm.commands.gpu_bringup import (
    FULL,
    REHEARSAL,
    DoesNotHold,
    NotDone,
    StageReport,
    run_stage,
    stage_file,
    start_stage,
    summarise,
)

from ..conftest import ROOT

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')


def lines(folder, stage):
    content = json.loads(stage_file(folder, stage).read_text())
    return {line['name']: line for line in content['lines']}


@NO_GPU
def test_without_a_gpu_every_line_says_so(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'tools' / 'gpu_bringup.py', '--out', tmp_path],
                          capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    for stage in range(1, 6):
        content = json.loads((tmp_path / f'stage{stage}.json').read_text())
        assert content['complete'] and content['stamp']['torch'] == torch.__version__
        assert {'commit', 'gpu', 'driver', 'ceilings'} <= set(content['stamp'])
        assert all(line['passed'] is None and 'no GPU' in line['detail']
                   for line in content['lines'])
    summary = json.loads((tmp_path / 'summary.json').read_text())['lines']
    assert len(summary) > 30 and {line['result'] for line in summary} == {'not done'}
    assert f'0 pass, 0 FAIL, {len(summary)} not done' in done.stdout


@pytest.mark.parametrize('stage, holds', [
    (2, ['ceilings of the device', 'kernels at stage sizes equal float64',
         *(f'a replayed graph equals the pass: {p}' for p in gpu_bringup.PARADIGMS)]),
    (3, ['ceilings of the device', 'operations against the ceilings'])])
def test_a_rehearsal_does_what_a_cpu_can(tmp_path, stage, holds):
    run_stage(stage, tmp_path, rehearse=True)
    found = lines(tmp_path, stage)
    assert [name for name, line in found.items() if line['passed']] == holds, found
    assert all(line['passed'] is None for name, line in found.items() if name not in holds)
    assert json.loads(stage_file(tmp_path, stage).read_text())['stamp']['ceilings']


@pytest.mark.slow
@pytest.mark.parametrize('stage, holding', [(1, 3), (4, 5), (5, 3)])
def test_a_rehearsal_of_what_takes_longer(tmp_path, stage, holding):
    run_stage(stage, tmp_path, rehearse=True)
    found = lines(tmp_path, stage)
    assert sum(line['passed'] is True for line in found.values()) == holding, found
    assert not any(line['passed'] is False for line in found.values())


def test_a_line_that_fails_does_not_stop_the_next(tmp_path):
    report = StageReport(stage_file(tmp_path, 3), 3, REHEARSAL, 1)

    def fails(error):
        raise error
    assert report.line('holds', lambda: 7) == 7
    assert report.line('broken', lambda: 1 / 0) is None
    assert report.line('other', lambda: fails(DoesNotHold('0.9'))) is None
    assert report.line('missing', lambda: fails(NotDone('no tool'))) is None
    found = lines(tmp_path, 3)  # written by now
    assert [(line['passed'], line['detail']) for line in found.values()] == [
        (True, 7), (False, 'ZeroDivisionError: division by zero'), (False, '0.9'),
        (None, 'no tool')]
    assert summarise(tmp_path, [3]) == 1
    report.content['lines'] = report.content['lines'][:1]
    report.write()
    assert summarise(tmp_path, [3]) == 0


def test_commands_that_fail_or_never_end_say_what_they_printed(tmp_path):
    report = StageReport(stage_file(tmp_path, 3), 3, REHEARSAL, 1)
    assert report.command(sys.executable, '-c', 'print(5)') == '5\n'
    with pytest.raises(DoesNotHold, match='exit status 3: bad'):
        report.command(sys.executable, '-c', 'print("bad"); raise SystemExit(3)')
    report.end = 0  # a second is left
    with pytest.raises(DoesNotHold, match='no end within the time of the stage: begun'):
        report.command(sys.executable, '-c',
                       'import time; print("begun", flush=True); time.sleep(60)')
    with pytest.raises(NotDone, match='no-such-tool is missing'):
        gpu_bringup.found('no-such-tool')


@pytest.mark.parametrize('written', [False, True])
def test_a_stage_that_breaks_is_a_line_of_its_own(tmp_path, monkeypatch, written):
    def breaks(*_, **__):
        if written:
            StageReport(stage_file(tmp_path, 2), 2, REHEARSAL, 1).line('one', lambda: 1)
        return SimpleNamespace(returncode=-11)
    args = SimpleNamespace(out=tmp_path, rehearse=True)
    with monkeypatch.context() as patch:
        patch.setattr(gpu_bringup, 'stamp', lambda device: {})
        patch.setattr(gpu_bringup.subprocess, 'run', breaks)
        start_stage(2, args)
    found = lines(tmp_path, 2)
    assert list(found) == ['one'] * written + ['the stage comes to its end']
    assert found['the stage comes to its end']['detail'] == 'exit status -11'
    assert summarise(tmp_path, [2]) == 1


def test_targets_hold_networks_to_the_compiled_static_net(tmp_path, monkeypatch):
    ratios = {('layer', 0.5): 0.6, ('spatial', 0.5): 0.8, ('channel', 0.5): 0.99}

    class Bench:
        def __init__(self, *_):
            pass

        def time(self, paradigm, rate):
            if (paradigm, rate) == ('layer', 0.4):
                raise RuntimeError('out of memory')
            return dict(paradigm=paradigm, rate=rate, ratio=ratios.get((paradigm, rate), 2.0))
    monkeypatch.setattr('laud_mm.profiling.rates.RateBench', Bench)
    monkeypatch.setattr(gpu_bringup, 'has_gpu', lambda: True)
    monkeypatch.setattr(gpu_bringup, 'stamp', lambda device: {})
    report = StageReport(stage_file(tmp_path, 4), 4, FULL, 1)
    gpu_bringup.compare_networks(report)
    found = lines(tmp_path, 4)
    assert found['resnet101 layer at 0.25 is timed']['passed'] is True
    assert found['resnet101 layer at 0.4 is timed']['detail'] == 'RuntimeError: out of memory'
    assert found['resnet101 layer at 0.5 is timed']['detail']['ratio'] == 0.6
    held = {(p, r): found[f'{p} at {r} takes at most {t} of the static net']
            for (p, r), t in gpu_bringup.TARGETS.items()}
    assert [(line['passed'], line['detail']) for line in held.values()] == [
        (True, 0.6), (False, '0.800'), (True, 0.99), (None, 'it was not timed')]
