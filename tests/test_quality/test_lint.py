"""The linters are clean, so that running the tests alone already says so."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('linter', [('ruff', 'check', '--no-cache'), ('mypy',)],
                         ids=lambda command: command[0])
def test_a_linter_finds_nothing(linter):
    pytest.importorskip(linter[0])
    done = subprocess.run([sys.executable, '-m', *linter], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
