# Spatial skipping on the digits at t = 0.6; the maps are 12, 6, 3 and 2 positions wide.
_base_ = './laud_resnet_digits.py'

model = dict(backbone=dict(paradigm='spatial', spatial_granularity=(4, 2, 1, 1)))
