"""LatencyReport: predicted latency of a network by op, block, stage and in total."""
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class OpLatency:
    """Predicted latency of one op on a whole batch.

    Attributes:
        name (str): Op, such as 'layer1.0.conv2'.
        kernel (str): What runs it.
        latency_ms (float): Total.
        compute_ms, memory_ms, launch_ms (float | None): Its terms; None where
            the predictor knows the total only.
        tile (tuple[int, ...] | None): Chosen tile, see `KernelCost`.
    """
    name: str
    kernel: str
    latency_ms: float
    compute_ms: float | None = None
    memory_ms: float | None = None
    launch_ms: float | None = None
    tile: tuple[int, ...] | None = None


def total_ms(ops):
    """Latency of several ops one after another."""
    return sum(op.latency_ms for op in ops)


@dataclass(frozen=True)
class BlockLatency:
    """One block on a whole batch, dynamic and static.

    Attributes:
        name (str): Block, such as 'layer1.0'.
        stage (int): Stage index, from 0.
        rate (float): Share of the block that is computed.
        ops, static_ops (tuple[OpLatency, ...]): What runs, both ways.
    """
    name: str
    stage: int
    rate: float
    ops: tuple[OpLatency, ...]
    static_ops: tuple[OpLatency, ...]

    @property
    def latency_ms(self) -> float:
        return total_ms(self.ops)

    @property
    def static_latency_ms(self) -> float:
        return total_ms(self.static_ops)

    @property
    def skipping_pays(self) -> bool:
        """Whether the dynamic block is predicted to be faster than the dense one."""
        return self.latency_ms < self.static_latency_ms


@dataclass(frozen=True)
class LatencyReport:
    """Predicted latency of a backbone. Latencies of ops and blocks are of a whole batch.

    Attributes:
        device (str): Name of the device.
        mode (str): 'analytic', 'published' or 'calibrated'.
        precision (str): Such as 'fp32'.
        batch (int): Images per batch.
        blocks (tuple[BlockLatency, ...]): The residual blocks.
        outside (tuple[OpLatency, ...]): Stem and tail.
        about (dict): What was predicted: network, paradigm, rate and such.
        static_outside (tuple[OpLatency, ...] | None): Those of the static net; None: the same.
    """
    device: str
    mode: str
    precision: str
    batch: int
    blocks: tuple[BlockLatency, ...]
    outside: tuple[OpLatency, ...] = ()
    about: dict = field(default_factory=dict)
    static_outside: tuple[OpLatency, ...] | None = None

    @property
    def _static_ends(self):
        return self.outside if self.static_outside is None else self.static_outside

    @property
    def blocks_latency_per_image_ms(self) -> float:
        """Residual blocks only, as in the papers' predictor."""
        return sum(b.latency_ms for b in self.blocks) / self.batch

    @property
    def static_blocks_latency_per_image_ms(self) -> float:
        return sum(b.static_latency_ms for b in self.blocks) / self.batch

    @property
    def latency_per_image_ms(self) -> float:
        """The whole backbone."""
        return total_ms(self.outside) / self.batch + self.blocks_latency_per_image_ms

    @property
    def static_latency_per_image_ms(self) -> float:
        return total_ms(self._static_ends) / self.batch + \
            self.static_blocks_latency_per_image_ms

    @property
    def ratio(self) -> float:
        """Dynamic over static, of the whole backbone."""
        return self.latency_per_image_ms / self.static_latency_per_image_ms

    def stages(self) -> list[dict[str, float]]:
        """Per stage: dict of `latency_per_image_ms` and `static_latency_per_image_ms`."""
        stages: dict[int, dict[str, float]] = {}
        for block in self.blocks:
            sums = stages.setdefault(block.stage, dict(latency_per_image_ms=0.0,
                                                       static_latency_per_image_ms=0.0))
            sums['latency_per_image_ms'] += block.latency_ms / self.batch
            sums['static_latency_per_image_ms'] += block.static_latency_ms / self.batch
        return [dict(stage=stage + 1, **sums) for stage, sums in sorted(stages.items())]

    def as_dict(self) -> dict:
        """Everything, ready for JSON."""
        def per_image(latencies):
            return [ms / self.batch for ms in latencies]

        return dict(
            self.about, device=self.device, mode=self.mode, precision=self.precision,
            batch=self.batch,
            blocks_latency_per_image_ms=self.blocks_latency_per_image_ms,
            static_blocks_latency_per_image_ms=self.static_blocks_latency_per_image_ms,
            latency_per_image_ms=self.latency_per_image_ms,
            static_latency_per_image_ms=self.static_latency_per_image_ms,
            ratio=self.ratio,
            block_latency_per_image_ms=per_image(b.latency_ms for b in self.blocks),
            static_block_latency_per_image_ms=per_image(
                b.static_latency_ms for b in self.blocks),
            stages=self.stages(),
            blocks=[dict(name=b.name, stage=b.stage + 1, rate=b.rate,
                         latency_ms=b.latency_ms, static_latency_ms=b.static_latency_ms,
                         skipping_pays=b.skipping_pays, ops=[asdict(o) for o in b.ops],
                         static_ops=[asdict(o) for o in b.static_ops]) for b in self.blocks],
            outside=[asdict(o) for o in self.outside],
            static_outside=[asdict(o) for o in self._static_ends])

    def rows(self) -> list[dict]:
        """One flat dict per op, for CSV; latencies in ms per batch."""
        rows = []
        for block in self.blocks:
            for net, ops in (('dynamic', block.ops), ('static', block.static_ops)):
                rows += [dict(net=net, block=block.name, stage=block.stage + 1, **asdict(op))
                         for op in ops]
        for net, ops in (('dynamic', self.outside), ('static', self._static_ends)):
            rows += [dict(net=net, block='', stage='', **asdict(op)) for op in ops]
        return rows
