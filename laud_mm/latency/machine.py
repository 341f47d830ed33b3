"""Name the machine at hand, without torch."""
import platform


def cpu_clock_mhz():
    """Clock of the CPU as the system reports it now; None where it does not."""
    try:
        with open('/proc/cpuinfo') as f:
            return next(float(line.split(':', 1)[1]) for line in f if 'cpu MHz' in line)
    except (OSError, StopIteration, ValueError):
        return None


def cpu_name():
    """Model name of the CPU."""
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':', 1)[1].strip() for line in f if 'model name' in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
