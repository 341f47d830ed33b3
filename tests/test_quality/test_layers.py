"""Layers hold: who imports whom, as CONTRIBUTING.md shows it."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'laud_mm'
TEXT = (ROOT / 'CONTRIBUTING.md').read_text()
# Packages that count by themselves inside another one.
INNER = ('models.dynamic',)


def layer_of(module):
    """The package or top-level module of a dotted name below laud_mm; None for laud_mm itself."""
    parts = module.split('.')[1:]
    if not parts or parts[0] in ('version',):
        return None
    inner = '.'.join(parts[:2])
    return inner if inner in INNER else parts[0]


def modules():
    for path in sorted({*PACKAGE.rglob('*.py'), *(ROOT / 'ops').rglob('*.py')}):
        parts = path.relative_to(ROOT).with_suffix('').parts
        if '.mim' in parts or 'ops' in parts[1:]:
            continue  # laud_mm/ops links to ops
        name = '.'.join(('laud_mm', *parts) if parts[0] == 'ops' else parts)
        yield path, name.removesuffix('.__init__'), path.name == '__init__.py'


def is_name(module):
    return any((PACKAGE.parent / Path(*module.split('.'))).with_suffix(s).exists()
               for s in ('.py', '')) or module == 'laud_mm.ops'


def imported(path, name, is_package):
    """Dotted names of laud_mm that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith('laud_mm'))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = name.split('.')[:None if is_package else -1]
                parts = parts[:len(parts) - node.level + 1]
                base = '.'.join([*parts, *filter(None, [node.module])])
            if base.split('.')[0] == 'laud_mm':
                for alias in node.names:
                    inner = f'{base}.{alias.name}'
                    yield inner if is_name(inner) else base


def actual():
    """Layer -> the layers that its files import."""
    found = {}
    for path, name, is_package in modules():
        own = layer_of(name)
        if own is None:
            continue
        uses = {layer_of(module) for module in imported(path, name, is_package)}
        found.setdefault(own, set()).update(uses - {own, None})
    return found


def table():
    """The table of CONTRIBUTING.md: layer -> layers that it imports."""
    rows = re.findall(r'^\| `([\w.]+)` \| (.*) \|$', TEXT, re.M)
    return {name: set(re.findall(r'`([\w.]+)`', uses)) for name, uses in rows}


def picture():
    """The picture of CONTRIBUTING.md: lines from top to bottom, the layers of each."""
    block = re.search(r'```text\n(.*?)```', TEXT, re.S).group(1)
    return [re.findall(r'[\w.]+', line.split('│')[0]) for line in block.splitlines()
            if re.search(r'\w', line.split('│')[0])]


def test_the_table_says_who_imports_whom():
    assert table() == actual()


def test_the_picture_has_every_layer_once_and_imports_go_down():
    depth = {name: index for index, line in enumerate(picture()) for name in line}
    names = [name for line in picture() for name in line]
    assert sorted(names) == sorted(actual())
    upwards = [(own, other) for own, uses in actual().items() for other in uses
               if depth[other] <= depth[own]]
    assert not upwards


@pytest.mark.parametrize('own, other', [('models.dynamic', 'latency'), ('inspection', 'hooks'),
                                        ('weights', 'models'), ('specs', 'models'),
                                        ('latency', 'models.dynamic')])
def test_these_never_meet(own, other):
    assert other not in actual()[own]


def test_importing_changes_no_global_state():
    import subprocess
    import sys
    program = (
        'import torch, warnings; warnings.simplefilter("ignore")\n'
        'def state():\n'
        '    return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),\n'
        '            torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32,\n'
        '            torch.backends.cuda.matmul.allow_tf32, torch.initial_seed())\n'
        'before = state()\n'
        'import laud_mm.models.backbones, laud_mm.hooks, laud_mm.profiling.bench\n'
        'import laud_mm.visualization, laud_mm.html_report, laud_mm.export, laud_mm.inspection\n'
        'import sys\n'
        'assert state() == before\n'
        'assert "matplotlib.pyplot" not in sys.modules\n')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
