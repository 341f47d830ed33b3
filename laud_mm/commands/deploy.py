"""What tools/deploy.py runs: a config and a checkpoint to an artefact that was checked."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from laud_mm.checkpoints import load_pretrained
from laud_mm.deploy import UnitProfile, load, load_profile, write_artefact
from laud_mm.deploy.artefact import CARD, KINDS, NETS, TORCH_KINDS
from laud_mm.deploy.check import compare
from laud_mm.deploy.onnx.runtimes import PACKAGES, need
from laud_mm.deploy.tokens import has_tokens
from laud_mm.latency.plans import PRECISIONS
from laud_mm.profiling.artefacts import deployed_form
from laud_mm.registry import MODELS
from laud_mm.specs import configured_size, find_backbone_config
from laud_mm.utils.files import write_json
from laud_mm.utils.run import load_config

# Largest differences to the skipping network, relative to the largest value of an output.
ALLOWED = dict(float32=1e-4, float64=1e-4, bfloat16=5e-2, float16=1e-2)


ONNX_FORMS = {'static': 'dense', 'shortcut only': 'none'}


class CheckError(RuntimeError):
    """An artefact does not give what the skipping network gives."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of tools/deploy.py."""
    parser.add_argument('config', help='config file; its LAUD backbone is deployed')
    parser.add_argument('checkpoint', nargs='?',
                        help='checkpoint of the whole model; default: fresh weights')
    parser.add_argument('--prefix', help="what the backbone's keys in the checkpoint start with, "
                        'such as student.backbone; default: as in the config')
    parser.add_argument('--to', choices=KINDS, default='aoti',
                        help='machine code by AOTInductor, a graph for torch.compile, or a file '
                        'for onnxruntime or OpenVINO')
    parser.add_argument('--one-image', action='store_true',
                        help='onnx and openvino: for a batch of one image only, faster there')
    parser.add_argument('--profile', help='report of the latency hook, or a profile file')
    parser.add_argument('--tolerance', type=float, default=0.0,
                        help='share of images in which a unit may differ from always or never')
    parser.add_argument('--size', nargs=2, type=int, metavar=('H', 'W'),
                        help='that programs are chosen for; default: as the config makes images')
    parser.add_argument('--batch', type=int, default=1, help='that programs are chosen for')
    parser.add_argument('--precision', choices=PRECISIONS, help='default: of the weights')
    parser.add_argument('--quantized', help='file of tools/quantize.py: compute in 8-bit integers')
    parser.add_argument('--plan', help='plan file of tools/latency.py plan')
    parser.add_argument('--decisions', action='store_true', help='return the decisions too')
    parser.add_argument('--out', required=True, help='folder to write')


def run(args: argparse.Namespace) -> dict:
    """Deploy, write, read again and check.

    Returns:
        dict: The card.

    Raises:
        ValueError: For a bad argument, with its name.
        CheckError: If the artefact differs from the skipping network.
    """
    if args.to in TORCH_KINDS and args.one_image:
        raise ValueError(f'one_image must be False for {args.to!r}, got True')
    if args.to not in TORCH_KINDS:
        if args.quantized is not None:
            raise ValueError(f'quantized must be left out for {args.to!r}, whose quantisers make '
                             f'it int8, got {args.quantized!r}')
        need('onnx', PACKAGES[args.to])  # before work starts
        if args.precision not in (None, 'fp32'):
            raise ValueError(f'precision must be fp32 for {args.to!r}, whose runtime chooses what '
                             f'it computes in, got {args.precision!r}')
    cfg = load_config(args.config)
    size = tuple(args.size or configured_size(cfg))
    profile = None if args.profile is None else load_profile(args.profile)
    backbone = build_backbone(cfg, args.checkpoint, args.prefix)
    if has_tokens(backbone) and args.to not in TORCH_KINDS:
        for name in ('profile', 'plan', 'one_image'):
            if getattr(args, name):
                raise ValueError(f'{name} must be left out for a transformer, got '
                                 f'{getattr(args, name)!r}')
    made: Any = deployed_form(
        backbone, args.to, image_size=size, batch=args.batch, precision=args.precision,
        plan=args.plan, profile=profile, tolerance=args.tolerance, with_decisions=True,
        quantized=args.quantized)
    batches = example_batches(backbone.in_channels, size, made.smallest_side)
    decisions = compare(backbone, made, batches, decided=True)
    exact = args.quantized is None  # else it differs, and some decisions flip: the card says so
    if exact:
        _check('the deployed network', decisions, made)
    made.with_decisions = args.decisions
    _, settings = find_backbone_config(cfg.get('model'))
    card = write_artefact(made, args.out, args.to, size, dict(
        config=args.config, checkpoint=args.checkpoint, backbone=settings.to_dict(),
        profile=args.profile,
        quantized=args.quantized, tolerance=args.tolerance, expected_rates=expected_rates(profile)),
        args.one_image)
    if args.one_image:
        batches = [image[None] for x in batches for image in x]
    check, file = compare(backbone, made, batches, decided=True, run=load(args.out)), NETS[args.to]
    if exact:
        _check(f'{args.out}/{file}', check, made)
    elif not abs(check['mean_difference'] - decisions['mean_difference']) <= ALLOWED['float32']:
        raise CheckError(f'{args.out}/{file} must differ from the skipping network as the '
                         f'quantised one does, by {decisions["mean_difference"]:.1e} of the size '
                         f'of outputs, got {check["mean_difference"]:.1e}')
    card['check'] = dict(check, **{key: decisions[key] for key in (
        'decisions_equal', 'decisions', 'decisions_flipped')},
                         sizes=[list(x.shape) for x in batches])
    write_json(card, Path(args.out, CARD))
    return card


def build_backbone(cfg: Any, checkpoint: str | None = None, prefix: str | None = None) -> Any:
    """Build the backbone of a config, in evaluation, and fill it from a checkpoint.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
    """
    place, settings = find_backbone_config(cfg.get('model'))
    settings = settings.to_dict()
    settings.pop('init_cfg', None)
    backbone = MODELS.build(settings)
    backbone.init_weights()
    if checkpoint:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f'checkpoint must be an existing file, got {checkpoint}')
        load_pretrained(backbone, checkpoint, prefix or place.removeprefix('model.'))
    return backbone.eval()


def example_batches(channels: int, size: tuple[int, ...], smallest: int) -> list[torch.Tensor]:
    """Random images of several batches and sizes, none smaller, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    height, width = (max(n, smallest) for n in size)
    return [torch.randn(n, channels, h, w, generator=generator) for n, h, w in (
        (1, height, width), (2, max(height // 2, smallest), width),
        (3, max(height // 2, smallest) + 5, max(width // 2, smallest)))]


def expected_rates(profile: UnitProfile | None) -> dict | None:
    """Mean rate of every mask of a profile."""
    return profile and {block: {mask: sum(rates) / len(rates) for mask, rates in own.items()}
                        for block, own in profile.blocks.items()}


def summary(card: dict, out: str) -> str:
    """One line on what was written."""
    kinds = [_kind(block['computes']) for block in card['blocks']]
    masked, check = kinds.count('masked'), card['check']
    blocks = (f'{kinds.count("skip")} blocks skip, ' + f'{masked} mask, ' * bool(masked)
              + f'{kinds.count("dense")} are dense, {kinds.count("none")} vanished')
    return (f'{out}: {card["kind"]}, {card["computes_in"]}, {card["net_bytes"] / 2**20:.1f} MiB; '
            f'{blocks}; largest difference to the skipping network '
            f'{check["largest_difference"]:.1e} of the largest value, on {check["images"]} images '
            f'of several sizes; {check["decisions_flipped"]} of {check["decisions"]} decisions '
            'differ')


def _kind(computes):
    """A card's words on a block, in one: of torch, or of ONNX."""
    if computes in ('listed', 'none', 'dense'):
        return dict(listed='skip').get(computes, computes)
    if computes in ONNX_FORMS:
        return ONNX_FORMS[computes]
    return 'skip' if computes.startswith('skipped') else 'masked'


def _check(name, found, made):
    allowed = ALLOWED[str(made.dtype).removeprefix('torch.')]
    exact = made.dtype in (torch.float32, torch.float64)
    if not found['largest_difference'] <= allowed or exact and found['decisions_equal'] is False:
        raise CheckError(f'{name} differs from the skipping network by '
                         f'{found["largest_difference"]:.1e} of the largest value (allowed: '
                         f'{allowed:g}), decisions equal: {found["decisions_equal"]}')
