"""LatencyHistogram: mean and percentiles of any number of latencies in bounded memory."""
import math
from collections import Counter

from .measure import LatencyStats

BIN = math.log(1.01)  # bins are 1 % wide
SHORTEST_MS = 1e-6


class LatencyHistogram:
    """Latencies counted in logarithmic bins.

    The mean is exact; percentiles are off by half a bin at most. All latencies
    from a nanosecond to an hour fall into some 3,500 bins.
    """

    def __init__(self):
        self.count, self.total_ms = 0, 0.0
        self.bins = Counter()

    def add(self, latency_ms):
        """Count one latency in ms."""
        self.count += 1
        self.total_ms += latency_ms
        self.bins[round(math.log(max(latency_ms, SHORTEST_MS)) / BIN)] += 1

    def update(self, other):
        """Count what another histogram counted."""
        self.count += other.count
        self.total_ms += other.total_ms
        self.bins += other.bins

    def percentile_ms(self, percent):
        """The latency that `percent` of those counted do not exceed."""
        wanted, seen = percent / 100 * self.count, 0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen >= wanted:
                break
        return math.exp(index * BIN)

    def stats(self):
        """Summarise as `LatencyStats`.

        Raises:
            ValueError: If nothing was counted.
        """
        if not self.count:
            raise ValueError('a histogram must hold at least one latency, got none')
        return LatencyStats(self.total_ms / self.count,
                            *(self.percentile_ms(p) for p in (50, 90, 99)), self.count)
