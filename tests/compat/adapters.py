"""A pytest plugin: our backbones in place of a framework's, and a record of what they hold.

`run.py` loads it (`-p adapters`) over test files whose statements it has wrapped.
"""
import inspect
import json
import re
from pathlib import Path
from unittest import SkipTest

import mmdet.models.backbones as detection
import mmdet.testing
import mmpretrain.models.backbones as classification
import pytest
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

from laud_mm.models.backbones import LAUDRegNet, LAUDResNet, LAUDT2TViT


class Record:
    """What became of each statement: rows of test, line, status, reason, checks and touched.

    `checks` is whether it checks something, `touched` whether it built or used a backbone.
    """

    def __init__(self):
        self.rows, self.test, self.touched, self.causes = [], '', False, {}

    def start(self, test):
        """Begin a test."""
        self.test, self.touched, self.causes = test, False, {}

    def add(self, line, status, reason, checks):
        """Add a row."""
        self.rows.append((self.test, line, status, reason, checks, self.touched))
        self.touched = False

    def held(self, line, checks):
        """A statement has run."""
        self.add(line, 'holds', '', checks)

    def failed(self, error, line, text, checks, names):
        """A statement has raised `error`; `names` are those that it would have assigned."""
        if isinstance(error, (KeyboardInterrupt, SystemExit, SkipTest, pytest.skip.Exception)):
            raise error
        unbound = re.search(r"'(\w+)'", str(error)) if isinstance(error, NameError) else None
        message = ' '.join(str(error).split()).split(' + where')[0][:160]
        if unbound and unbound[1] in self.causes:  # it follows from an earlier one
            status, reason = self.causes[unbound[1]]
        elif getattr(error, 'refused', False):
            expects = 'raises(' in text or 'assertRaises' in text
            status, reason = 'refused alike' if expects else 'refused', message
        else:
            status, reason = 'differs', f'{type(error).__name__}: {message} in `{text}`'
            if isinstance(error, AssertionError):
                reason = f'`{text}`: {message}'
        for name in names:
            self.causes[name] = status, reason
        self.add(line, status, reason, checks)


RECORD = Record()


def convert_regnet(theirs, arguments):
    """Give the stages of a RegNetX as the table that LAUDRegNet reads, without excitation."""
    arch = arguments['arch']
    if isinstance(arch, dict) or arch in theirs.arch_settings:
        net = theirs(arch)
        arguments['arch'] = dict(widths=net.stage_widths, depths=net.stage_blocks,
                                 group_widths=net.group_widths, se_ratio=0)


def convert_t2t(theirs, arguments):
    """Name the settings of mmpretrain's T2T_ViT as LAUDT2TViT does."""
    dims, t2t = arguments.pop('embed_dims'), arguments.pop('t2t_cfg')
    arguments.update(
        arch=dict(embed_dims=dims, num_layers=arguments.pop('num_layers'), num_heads=6,
                  feedforward_channels=3 * dims),
        token_dim=t2t.get('token_dims', 64),
        t2t_type='performer' if t2t.get('use_performer') else 'transformer')


def convert_small(theirs, arguments):
    """Replace a ResNet-18 or 34 by a net of bottlenecks with the same output channels."""
    if arguments['depth'] in (18, 34):
        channels = arguments['base_channels']
        arguments.update(depth=50, base_channels=channels // 4,
                         stem_channels=arguments['stem_channels'] or channels)


def adapt(theirs, ours, settings, convert=None, **more):
    """Subclass `ours` to take the arguments of `theirs`, with the defaults of `theirs`.

    What `ours` does not know is left out where it has its default, and refused otherwise.

    Args:
        theirs (type): The framework's class.
        ours (type): The class in its place.
        settings (dict): Arguments of `ours` alone.
        convert (Callable, optional): Changes the arguments in place.
        **more: Arguments that `theirs` is given in a variant of it.
    """
    parameters = inspect.signature(theirs.__init__)

    class Adapted(ours):
        def __init__(self, *args, **kwargs):
            RECORD.touched = True
            given = parameters.bind(self, *args, **more, **kwargs)
            given.apply_defaults()
            arguments = dict(list(given.arguments.items())[1:])
            if 'init_cfg' not in kwargs:
                arguments.pop('init_cfg')
            if convert:
                convert(theirs, arguments)
            known = inspect.signature(ours.__init__).parameters
            try:
                super().__init__(**settings, **{
                    name: value for name, value in arguments.items()
                    if name in known or value != parameters.parameters[name].default})
            except (TypeError, ValueError) as error:
                error.refused = True
                raise

    return watch(Adapted)


def watch(cls):
    """Note when a net of the class is built or used."""
    def noting(method):
        def call(self, *args, **kwargs):
            RECORD.touched = True
            return method(self, *args, **kwargs)
        return call

    for name in ('__init__', 'forward', 'train', 'init_weights'):
        setattr(cls, name, noting(getattr(cls, name)))
    return cls


def is_our_block(module):
    """What the tests of mmdet ask a helper for: whether a module is a residual block."""
    return hasattr(module, 'masker') or isinstance(
        module, (detection.resnet.BasicBlock, detection.resnet.Bottleneck))


def replace(settings):
    """Put our classes where the tests take the frameworks'."""
    for package in (detection, classification):
        resnet = package.ResNet
        package.RegNet = adapt(package.RegNet, LAUDRegNet, settings, convert_regnet)
        package.ResNet = adapt(resnet, LAUDResNet, settings)
        package.ResNetV1c = adapt(resnet, LAUDResNet, settings, deep_stem=True)
        package.ResNetV1d = adapt(resnet, LAUDResNet, settings, deep_stem=True, avg_down=True)
        if package is detection:
            MODELS.register_module('ResNet', force=True,
                                   module=adapt(resnet, LAUDResNet, settings, convert_small))
    classification.T2T_ViT = adapt(classification.T2T_ViT, LAUDT2TViT, settings, convert_t2t)


def pytest_addoption(parser):
    parser.addoption('--net')
    parser.addoption('--record')
    parser.addoption('--configs')


def pytest_configure(config):
    register_all_modules()
    mmdet.testing._utils._get_config_directory = lambda: config.getoption('--configs')
    net = config.getoption('--net')
    if net == 'theirs':
        for package in (detection, classification):
            watch(package.ResNet)  # RegNet is a subclass
        watch(classification.T2T_ViT)
    else:
        replace(dict(paradigm=None if net == 'static' else net))


def pytest_collection_modifyitems(items):
    for module in {item.module for item in items}:
        if hasattr(module, 'is_block'):
            module.is_block = is_our_block


def pytest_runtest_setup(item):
    RECORD.start(item.nodeid)


def pytest_runtest_logreport(report):
    if report.failed:
        RECORD.add(0, 'differs', str(report.longrepr)[-160:], True)


def pytest_unconfigure(config):
    Path(config.getoption('--record')).write_text(json.dumps(RECORD.rows))
