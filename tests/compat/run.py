"""Run mmdet's and mmpretrain's own tests with our backbones in place of theirs.

See the README beside this file. Every statement of a test that checks something or uses a
backbone is an expectation, and counts if it holds for the framework's own class here.
"""
import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = {
    'mmdet': ['test_backbones/test_resnet.py', 'test_backbones/test_regnet.py', 'test_detectors'],
    'mmpretrain': [f'test_backbones/test_{n}.py' for n in ('resnet', 'regnet', 't2t_vit')],
}
NETS = ('static', 'layer')
STATUSES = ('holds', 'refused alike', 'refused', 'differs', 'not met')
HEADING = {'holds': 'hold', 'refused alike': 'refused as there, with another error',
           'refused': 'refused', 'differs': 'differ', 'not met': 'not met'}
RAW = (ast.Import, ast.ImportFrom, ast.Return, ast.Break, ast.Continue, ast.Pass, ast.Global,
       ast.FunctionDef, ast.ClassDef)


def is_raising(node):
    """Whether a `with` expects an error."""
    return isinstance(node, ast.With) and 'aises' in ast.unparse(node.items[0])


def checks(node):
    """Whether a statement checks something."""
    return isinstance(node, ast.Assert) or is_raising(node) or (
        isinstance(node, ast.Expr) and ast.unparse(node).startswith('self.assert'))


def wrap(node, parents, above=None):
    """Have a statement recorded, and the test go on after it.

    Args:
        node (ast.stmt): The statement.
        parents (dict): Gets the line of the loop or condition around it, and its text.
        above (int, optional): That line.
    """
    if isinstance(node, RAW):
        return [node]
    text = ast.unparse(node).splitlines()
    parents[node.lineno] = above, text[0]
    text = (text[1].strip() + '  # ' + text[0] if is_raising(node) else text[0])[:100]
    if isinstance(node, (ast.For, ast.If, ast.With)) and not is_raising(node):
        node.body = [new for old in node.body for new in wrap(old, parents, node.lineno)]
        if not isinstance(node, ast.With):
            node.orelse = [new for old in node.orelse for new in wrap(old, parents, node.lineno)]
    names = sorted({n.id for target in getattr(node, 'targets', []) for n in ast.walk(target)
                    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)})
    arguments = f'{node.lineno}, {text!r}, {checks(node)}, {names}'
    caught = f'try: pass\nexcept BaseException as _error:\n    RECORD.failed(_error, {arguments})\n'
    # An unbound name is how the statements that need it are known not to be reached.
    caught += ''.join(f'    {name} = None\n    del {name}\n' for name in names)
    new = ast.parse(f'{caught}else:\n    RECORD.held({node.lineno}, {checks(node)})').body[0]
    new.body = [node]
    return [new]


def instrument(path):
    """Wrap the statements of every test of a file; returns what is around each, by line."""
    tree, parents = ast.parse(path.read_text()), {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name.startswith('test'):
            function.body = [new for old in function.body for new in wrap(old, parents)]
    tree.body.insert(0, ast.parse('from adapters import RECORD').body[0])
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    return parents


def run(net, root, targets, configs, record):
    """Run the tests with one net: {(test, line): (status, reason, checks, touched)}.

    A statement in a loop counts once, and holds if it always does.
    """
    # Tests of mmdet read parameters that nothing has written yet: 255 fills them with zeros.
    env = dict(os.environ, MALLOC_PERTURB_='255', PYTHONPATH=os.pathsep.join(
        [str(HERE), str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]))
    subprocess.run([sys.executable, '-P', '-m', 'pytest', '-q', '-p', 'adapters', '-p',
                    'no:cacheprovider', '-W', 'ignore', '--rootdir', root, '--net', net,
                    '--configs', configs, '--record', record, *targets],
                   env=env, cwd=Path(configs).parent, stdout=sys.stderr, check=False)
    result = {}
    for test, line, status, reason, checks, touched in json.loads(Path(record).read_text()):
        old = result.get((test, line), ('holds', '', False, False))
        kept = (status, reason) if old[0] == 'holds' else old[:2]
        result[test, line] = (*kept, old[2] or checks, old[3] or touched)
    return result


def expectations(baseline):
    """The rows that check something or use a backbone, in tests that use one."""
    uses = {test for (test, _), row in baseline.items() if row[3]}
    return {(test, line): row for (test, line), row in sorted(baseline.items())
            if test in uses and (row[2] or row[3])}


def compare(baseline, ours, parents):
    """What becomes of each expectation: {(test, line): (status, reason)}."""
    result = {}
    for (test, line), (status, *_) in expectations(baseline).items():
        if status != 'holds':
            continue
        around, text = parents[test.split('::')[0]][line]
        row = ours.get((test, line)) or ours.get((test, 0))
        while row is None and around:  # a loop over what could not be had
            row = ours.get((test, around))
            row = row if row and row[0] != 'holds' else None
            around = parents[test.split('::')[0]][around][0]
        result[test, line] = row[:2] if row else ('not met', f'`{text}`')
    return result


def report(results):
    """The tables, as Markdown lines."""
    lines = [f'| Tests | paradigm | expectations | {" | ".join(HEADING.values())} |',
             '| --- ' * (3 + len(STATUSES)) + '|']
    for net, rows in results.items():
        files = sorted({test.split('::')[0] for test, _ in rows})
        for name in [*files, '']:
            count = Counter(row[0] for (test, _), row in rows.items() if test.startswith(name))
            lines.append(f'| {name or "all"} | {"None" if net == "static" else net} | '
                         f'{count.total()} | {" | ".join(str(count[s]) for s in STATUSES)} |')
    for status in STATUSES[1:]:
        if not any(row[0] == status for rows in results.values() for row in rows.values()):
            continue
        lines += ['', f'**{HEADING[status].capitalize()}**', '',
                  f'| Reason | {" | ".join(NETS)} | first at |', '| --- ' * (len(NETS) + 2) + '|']
        where = {}
        for net, rows in results.items():
            for (test, line), (got, reason) in rows.items():
                if got == status:
                    where.setdefault(reason.split(', got ')[0].split(' in `')[0], []).append(
                        (net, reason.replace('|', '\\|'), f'{test}:{line}'))
        for places in where.values():
            counts = Counter(net for net, _, _ in places)
            lines.append(f'| {places[0][1]} | {" | ".join(str(counts[n]) for n in NETS)} | '
                         f'{places[0][2]} |')
    return lines


def main():
    """Parse the command line, run, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--mmdet', type=Path, required=True, help='checkout of mmdetection')
    parser.add_argument('--mmpretrain', type=Path, required=True, help='checkout of mmpretrain')
    parser.add_argument('--out', type=Path, help='Markdown file; default: standard output')
    parser.add_argument('--only', default='', help='run only test files whose path has this')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        parents, targets = {}, []
        for framework in TESTS:
            source = getattr(args, framework) / 'tests' / 'test_models'
            copy = Path(root, framework)
            for name in TESTS[framework]:
                folder = Path(name).parts[0]
                shutil.copytree(source / folder, copy / folder, dirs_exist_ok=True)
                (copy / folder / '__init__.py').touch()
            for package in (Path(root), copy):
                (package / '__init__.py').touch()
            targets += [path for name in TESTS[framework]
                        for path in (sorted((copy / name).glob('test_*.py'))
                                     if (copy / name).is_dir() else [copy / name])
                        if args.only in str(path.relative_to(root))]
        for path in targets:
            parents[str(path.relative_to(root))] = instrument(path)
        configs = str(args.mmdet.resolve() / 'configs')
        runs = {net: run(net, root, list(map(str, targets)), configs, f'{root}/{net}.json')
                for net in ('theirs', *NETS)}
    results = {net: compare(runs['theirs'], runs[net], parents) for net in NETS}
    versions = ', '.join(f'{name} {version(name)}' for name in (*TESTS, 'mmcv', 'torch'))
    lines = [versions, '', *report(results)]
    failing = [row[1] for row in expectations(runs['theirs']).values() if row[0] != 'holds']
    lines += ['', f'Not counted, as the frameworks fail them here too: {len(failing)}.', '',
              *(f'* {count}: {reason}' for reason, count in Counter(failing).items())]
    text = '\n'.join(lines) + '\n'
    args.out.write_text(text) if args.out else print(text)


if __name__ == '__main__':
    main()
