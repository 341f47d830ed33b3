"""The C++ program runs an artefact, without Python."""
import re
import shutil
import subprocess

import pytest
import torch

from laud_mm import ops
from laud_mm.deploy import deploy, write_artefact

from ..conftest import ROOT
from .nets import build, images

SOURCE = ROOT / 'deploy' / 'cpp'


def test_the_schemas_of_programs_are_those_of_python():
    text = (SOURCE / 'schemas.cpp').read_text()
    found = {''.join(re.findall(r'"(.*)"', call)) for call in re.findall(r'm\.def\((.*?)\);', text,
                                                                         re.S)}
    assert found == {str(getattr(torch.ops.laud_mm, name).default._schema).split('::', 1)[1]
                     for name in ops.OPERATIONS}


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    if not shutil.which('cmake') or not shutil.which('c++'):
        pytest.skip('cmake and a C++ compiler are needed to build the program')
    folder = tmp_path_factory.mktemp('cpp')
    for command in (['cmake', '-S', str(SOURCE), '-B', str(folder), f'-DTORCH={torch.__path__[0]}'],
                    ['cmake', '--build', str(folder), '--parallel', '2']):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / 'laud_run'


@pytest.mark.slow
def test_there_is_no_python_in_the_program(program):
    for file in (program, program.with_name('liblaud_mm_ops.so')):
        linked = subprocess.run(['ldd', file], capture_output=True, text=True, check=True).stdout
        print(linked)
        # By their names: libtorch lies in a folder of Python's.
        names = {line.split()[0] for line in linked.splitlines()}
        assert {'libtorch_cpu.so', 'libc10.so'} <= names
        assert not [name for name in names if 'python' in name]
    assert 'liblaud_mm_ops.so' in subprocess.run(['ldd', program], capture_output=True,
                                                 text=True).stdout


@pytest.mark.slow
def test_the_program_gives_the_networks_numbers(program, tmp_path):
    net = build('LAUDRegNet', 'spatial')
    write_artefact(deploy(net), tmp_path, 'aoti', (64, 64))
    pixels = images(1, 48, 64)[0].mul(50).add(120).clamp(0, 255).to(torch.uint8)
    picture = tmp_path / 'image.ppm'
    picture.write_bytes(b'P6\n64 48\n255\n'
                        + pixels.permute(1, 2, 0).contiguous().numpy().tobytes())
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    x = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected = net(x[None])
    done = subprocess.run([program, tmp_path / 'net.pt2', picture, '--runs', '2'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r'output \d shape \[(.*)\] checksum (\S+)', done.stdout)
    assert [tuple(map(int, shape.split(', '))) for shape, _ in found] == [y.shape for y in expected]
    for (_, checksum), y in zip(found, expected):
        assert float(checksum) == pytest.approx(y.double().abs().sum().item(), rel=1e-4)
    assert float(re.search(r'time (\S+) ms', done.stdout).group(1)) > 0

    for arguments, message in ((['one.pt2'], 'usage: laud_run'),
                               ([tmp_path / 'net.pt2', tmp_path / 'card.json'], 'IMAGE must be')):
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr
