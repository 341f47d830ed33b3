"""Name the machine at hand, without torch."""
import platform


def cpu_name():
    """Model name of the CPU."""
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':', 1)[1].strip() for line in f if 'model name' in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
