"""Every command of the README and the documentation runs: here, or in the test named for it."""
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from laud_mm.specs import PARADIGMS

from ..conftest import ROOT

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
# Commands that answer in seconds and need no data: run here as they stand.
CHEAP = ('python tools/latency.py predict', 'python tools/latency.py sweep',
         'python tools/get_flops.py', 'cp ')
# The others, by what they begin with: the test or script that runs them, smaller.
RUN_BY = {
    'make demo': 'tools/run_demo.py',
    'make digits': 'tests/test_tools/test_train_classifier.py::'
                   'test_a_killed_study_goes_on_where_it_was',
    'make fashion': 'tests/test_demo/test_fashion.py::'
    'test_the_study_trains_evaluates_and_times_and_knows_what_it_has_done',
    'make test': '.ci/run',
    'make coverage': 'pyproject.toml',  # `make test` with a measuring plugin
    'make lint': 'tests/test_quality/test_lint.py::test_a_linter_finds_nothing',
    'make docs': 'tests/test_docs/test_commands.py::'
    'test_the_documentation_builds_without_a_warning',
    'make env': 'tests/test_tools/test_setup_env.py',
    'pip install': 'tests/test_install/test_packaging.py',
    'MMCV_WITH_OPS=1 pip install': 'tools/setup_env.py',
    'make dist': 'tests/test_install/test_distributions.py',
    'python tools/train.py configs/laud_': 'tests/test_tools/test_train_classifier.py::'
    'test_an_imagenet_config_trains_on_class_folders_with_two_processes',
    'python tools/train.py': 'tests/test_tools/test_train_and_test.py::'
    'test_training_logs_metrics_and_the_latency_report',
    'python tools/test.py': 'tests/test_tools/test_train_and_test.py::'
    'test_masked_and_skipping_evaluation_agree',
    'tools/dist_train.sh': 'tests/test_tools/test_train_and_test.py::'
    'test_detectors_train_and_report_on_two_processes',
    'python tools/image_demo.py': 'tests/test_tools/test_detector_tools.py::'
    'test_the_image_demo_draws_objects_beside_what_was_skipped',
    'python tools/latency.py measure --artifact': 'tests/test_tools/test_measure_artefacts.py::'
    'test_each_kind_is_timed_beside_its_own_static_net',
    'python benchmarks/deployed.py': 'tests/test_tools/test_measure_artefacts.py::'
    'test_the_benchmark_of_deployed_nets_times_every_runtime',
    'python benchmarks/history.py': 'tests/test_tools/test_history.py::'
    'test_a_release_adds_its_ratios_with_precision_cpu_and_versions',
    'python benchmarks/specialised.py': 'tests/test_demo/test_specialised.py::'
    'test_a_specialised_detector_finds_what_the_whole_one_finds',
    'python tools/latency.py measure': 'tests/test_tools/test_latency_tool.py::test_measure',
    'python tools/latency.py calibrate': 'tests/test_tools/test_latency_tool.py::'
    'test_calibrate_predict_and_compare',
    'python tools/latency.py compare': 'tests/test_tools/test_latency_tool.py::'
    'test_calibrate_predict_and_compare',
    'python tools/latency.py plan': 'tests/test_tools/test_latency_tool.py::'
    'test_plan_measures_and_a_backbone_takes_it',
    'python tools/convert_checkpoint.py': 'tests/test_checkpoints/test_convert.py::'
    'test_the_tool_converts_and_explains_failures',
    'python tools/export.py': 'tests/test_export.py::'
    'test_the_tool_writes_checks_and_says_what_it_is',
    'python tools/deploy.py': 'tests/test_deploy/test_deploy_tool.py::'
    'test_the_tool_writes_checks_and_says_what_it_is',
    'python tools/gpu_bringup.py': 'tests/test_tools/test_gpu_bringup.py::'
    'test_without_a_gpu_every_line_says_so',
    'python tools/quantize.py': 'tests/test_deploy/test_deploy_tool.py::'
    'test_a_net_is_quantised_from_a_folder_of_images',
    'cmake ': 'tests/test_deploy/test_cpp.py::test_the_program_gives_the_networks_numbers',
    'build/cpp/laud_run': 'tests/test_deploy/test_cpp.py::'
    'test_the_program_gives_the_networks_numbers',
    'python tools/visualize.py': 'tests/test_tools/test_visualize_tool.py::'
    'test_the_tool_writes_a_report_of_a_detector',
}


def commands_of(page):
    for block in re.findall(r'^```bash\n(.*?)^```', page.read_text(), re.S | re.M):
        for line in block.replace('\\\n', ' ').splitlines():
            line = re.sub(r'\s+# .*', '', line).strip()
            if line:
                yield re.sub(r'\s+', ' ', line)


def all_commands():
    return sorted({(page.relative_to(ROOT), command)
                   for page in PAGES for command in commands_of(page)})


def is_cheap(command):
    return command.startswith(CHEAP) and 'work_dirs/' not in command


COMMANDS = [pytest.param(command, id=f'{page}-{command[:60]}')
            for page, command in all_commands()]


@pytest.mark.parametrize('command', [c for c in COMMANDS if not is_cheap(c.values[0])])
def test_an_expensive_command_is_run_by_a_test_or_script(command):
    if command.startswith(CHEAP):
        pytest.skip('a cheap command on files of a training; its options are checked below')
    runners = [runner for start, runner in RUN_BY.items() if command.startswith(start)]
    assert runners, f'no test runs this command: {command}'
    path, _, name = runners[0].partition('::')
    assert (ROOT / path).is_file()
    assert not name or f'def {name}(' in (ROOT / path).read_text()


@pytest.mark.parametrize('command', COMMANDS)
def test_tools_options_and_configs_of_a_command_are_there(command):
    words = shlex.split(command)
    for word in words:
        if word.startswith(('configs/', 'tools/')):
            assert (ROOT / word).is_file(), word
    tool = next((ROOT / word for word in words if word.startswith('tools/')), None)
    if tool is not None and tool.suffix == '.py':
        shared = (ROOT / 'laud_mm' / 'utils' / 'run.py',
                  *(ROOT / 'laud_mm' / 'commands' / tool.stem).glob('*.py'),
                  *(ROOT / 'laud_mm' / 'commands').glob(f'{tool.stem}.py'))
        known = ''.join(path.read_text() for path in (tool, *shared))
        unknown = [word for word in words if word.startswith('--') and f"'{word}'" not in known]
        assert not unknown
    if words[0] == 'make':
        targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M)
        assert words[1] in targets


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder that looks like the checkout, and takes what commands write."""
    folder = tmp_path_factory.mktemp('docs')
    for name in ('configs', 'tools', 'laud_mm'):
        (folder / name).symlink_to(ROOT / name)
    return folder


def cheap_by_page():
    pages = {}
    for page, command in all_commands():
        if is_cheap(command):
            pages.setdefault(str(page), []).append(command)
    return pages


@pytest.mark.slow
@pytest.mark.parametrize('page', cheap_by_page())
def test_cheap_commands_run_as_they_stand(page, folder):
    # `cp` comes first in the alphabet, so what it copies is there.
    script = '\n'.join(command.replace('python ', f'{shlex.quote(sys.executable)} -W ignore ', 1)
                       for command in cheap_by_page()[page])
    done = subprocess.run(['bash', '-eu', '-c', script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r'[\w/]+\.md', (ROOT / 'mkdocs.yml').read_text()))
    assert listed == {str(p.relative_to(ROOT / 'docs')) for p in (ROOT / 'docs').rglob('*.md')}


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'model_zoo.md'])
def test_links_of_pages_beside_the_documentation_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r'\]\(([^)#]+)', text) if '://' not in link]
    assert page == 'CONTRIBUTING.md' or links
    assert not [link for link in links if not Path(ROOT, link).exists()]


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip('mkdocs')
    done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet',
                           '--site-dir', str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / 'api' / 'latency' / 'index.html').is_file()


def test_the_page_on_paradigms_names_files_that_hold_what_it_says():
    text = (ROOT / 'docs' / 'paradigms.md').read_text()
    files = re.findall(r'^\| `([\w/]+\.py)` \| (.+) \|$', text, re.M)
    assert len(files) == 9
    for name, what in files:
        content = (ROOT / name).read_text()
        assert all(word in content for word in re.findall(r'`(\w+)`', what)), name
    for paradigm in PARADIGMS:  # every place that knows one paradigm by its name is on the page
        knows = {str(path.relative_to(ROOT)) for path in (ROOT / 'laud_mm').rglob('*.py')
                 if re.search(rf"'{paradigm}' in |{paradigm}=(\(|'\w+'\))|\.{paradigm}_skipping",
                              path.read_text())
                 and ('specs/bottleneck' in str(path) or 'models/dynamic/' in str(path))
                 and 'transformer' not in str(path)}
        assert knows <= {name for name, _ in files}, paradigm
