"""What a device can do at most: its bandwidth and its multiply-adds, measured."""
import torch

from laud_mm.latency.measure import LatencyStats, Timer

# Values of a copy, more than the caches hold, and side of a matrix product.
SIZES = dict(cuda=(1 << 28, 8192), cpu=(1 << 25, 1024))


def measure_ceilings(device, dtype=torch.float32, repeats=9):
    """Time a large copy and a large matrix product.

    Args:
        device (str | torch.device): Where.
        dtype (torch.dtype): Of the values.
        repeats (int): Timed runs of each, after one untimed; the median counts.

    Returns:
        dict[str, float]: `bandwidth_gb_s`, bytes read and written, and `tflops`, a
        multiply-add as two.
    """
    device = torch.device(device)
    values, side = SIZES.get(device.type, SIZES['cpu'])
    source = torch.zeros(values, dtype=dtype, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(side, side, device=device).to(dtype)
    product, timer = torch.empty_like(matrix), Timer(device)

    def median_ms(run):
        return LatencyStats.of([timer.time_ms(run) for _ in range(1 + repeats)][1:]).p50_ms
    copy_ms = median_ms(lambda: target.copy_(source))
    product_ms = median_ms(lambda: torch.mm(matrix, matrix, out=product))
    return dict(bandwidth_gb_s=2 * source.nbytes / copy_ms / 1e6,
                tflops=2 * side**3 / product_ms / 1e9)


def share_of_ceiling(latency_ms, moved_bytes, flops, ceilings):
    """How near a time is to what the ceilings allow: 1 is all, more where caches serve.

    Args:
        latency_ms (float): Measured.
        moved_bytes (float): At least read and written.
        flops (float): Computed, a multiply-add as two.
        ceilings (dict[str, float]): Of `measure_ceilings`.
    """
    least_ms = max(moved_bytes / ceilings['bandwidth_gb_s'] / 1e6,
                   flops / ceilings['tflops'] / 1e9)
    return least_ms / max(latency_ms, 1e-9)
