"""Hardware: a device as the analytic predictor sees it, read from a data file.

One JSON file per device stands in `data/`; every field there has a value, a
unit and a source. Users describe their own device in a file of the same form.
"""
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from laud_mm.specs.arguments import check_choice

DATA = Path(__file__).parent / 'data'
PRECISIONS = ('fp32', 'tf32', 'fp16', 'bf16')
_BYTES = dict(fp32=4, tf32=4, fp16=2, bf16=2)


@dataclass(frozen=True)
class Hardware:
    """One device (LAUDNet, the latency predictor).

    Attributes:
        name (str): Short name, such as 'V100'.
        engines (int): N, processing engines: SMs of a GPU, cores of a CPU.
        lanes (float): L, fp32 multiply-adds per cycle and engine.
        clock_ghz (float): f.
        bandwidth_gb_s (float): Off-chip bandwidth.
        batch (int): Batch size that the device is judged at by default.
        l2_bandwidth_ratio (float): Bandwidth of the last-level cache, in
            multiples of the off-chip one.
        l2_mib (float): Size of the last-level cache.
        launch_us (float): Time to launch a kernel.
        outputs_per_lane (float): Independent outputs that a lane needs to run at its peak.
        tensor_tflops (dict[str, float]): Dense rate of the matrix units by precision.
        title (str): Full name.
    """
    name: str
    engines: int
    lanes: float
    clock_ghz: float
    bandwidth_gb_s: float
    batch: int = 1
    l2_bandwidth_ratio: float = 4.0
    l2_mib: float = 0.0
    launch_us: float = 8.0
    outputs_per_lane: float = 4.0
    tensor_tflops: dict[str, float] = field(default_factory=dict, hash=False)
    title: str = ''

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that the device computes in."""
        return tuple(p for p in PRECISIONS if p == 'fp32' or p in self.tensor_tflops)

    def macs_per_cycle(self, precision: str) -> float:
        """Multiply-adds per cycle of one engine, in a precision."""
        check_choice(f'precision ({self.name})', precision, self.precisions)
        if precision not in self.tensor_tflops:
            return self.lanes
        return self.tensor_tflops[precision] * 1e3 / (2 * self.engines * self.clock_ghz)

    @staticmethod
    def element_bytes(precision: str) -> int:
        """Size of one value in memory."""
        return _BYTES[precision]


def known_devices() -> list[str]:
    """Names of the devices that come with the package."""
    return sorted(path.stem for path in DATA.glob('*.json'))


def load_hardware(device: str | Path) -> Hardware:
    """Read a device.

    Args:
        device (str): A name from `known_devices`, in any case, or the path of
            a JSON file of one's own.

    Returns:
        Hardware: The device.

    Raises:
        ValueError: If there is no such device, or a field is missing, unknown
            or out of range.
    """
    known = {name.lower(): name for name in known_devices()}
    path = Path(device)
    if str(device).lower() in known:
        path = DATA / f'{known[str(device).lower()]}.json'
    elif not path.is_file():
        raise ValueError(f'device must be one of {", ".join(known.values())}, or the path of a '
                         f'device or calibration file, got {str(device)!r}')
    try:
        content = json.loads(path.read_text())
        values = {name: entry['value'] for name, entry in content['fields'].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} must be a JSON file with fields of value, unit and source, like '
                         f'{DATA / "V100.json"}: {type(error).__name__}: {error}') from error
    return _checked(path, content.get('title', path.stem), values)


def _checked(path, title, values):
    tensor = {p: values.pop(f'{p}_tflops') for p in PRECISIONS if f'{p}_tflops' in values}
    numeric = {f.name for f in fields(Hardware)} - {'name', 'title', 'tensor_tflops'}
    required = {'engines', 'lanes', 'clock_ghz', 'bandwidth_gb_s'}
    unknown, missing = set(values) - numeric, required - set(values)
    if unknown or missing:
        allowed = sorted(numeric | {f'{p}_tflops' for p in PRECISIONS})
        raise ValueError(f'{path}: missing fields: {", ".join(sorted(missing)) or "none"}; unknown '
                         f'fields: {", ".join(sorted(unknown)) or "none"}; allowed: '
                         f'{", ".join(allowed)}')
    for name, value in {**values, **{f'{p}_tflops': v for p, v in tensor.items()}}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
                0 < value < math.inf or value == 0 and name in ('launch_us', 'l2_mib')):
            raise ValueError(f'{path}: {name} must be a positive number, got {value!r}')
        if name in ('engines', 'batch') and not isinstance(value, int):
            raise ValueError(f'{path}: {name} must be a positive int, got {value!r}')
    return Hardware(path.stem, **values, tensor_tflops=tensor, title=title)
