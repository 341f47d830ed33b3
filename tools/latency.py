"""Latency of LAUD backbones: predicted for a device, measured here, and compared.

    latency.py predict   --network resnet101 --paradigm layer --rate 0.4 --device V100
    latency.py sweep     --preset granularity --network resnet101 --device V100 TX2
    latency.py measure   --network resnet50 --paradigm layer --rate 0.5 --batch 8
    latency.py measure   --artifact work_dirs/r50
    latency.py calibrate --out calibration.json
    latency.py compare   --calibration calibration.json
    latency.py plan      --network resnet101 --paradigm layer --batch 1 8 --out plan.json
"""
from laud_mm.commands.latency import main as run


def main(argv=None):
    run(__doc__, argv)


if __name__ == '__main__':
    main()
