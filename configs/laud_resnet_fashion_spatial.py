# Spatial skipping on Fashion-MNIST at t = 0.6; the maps are 8, 4, 2 and 1 positions wide.
_base_ = './laud_resnet_fashion.py'

model = dict(backbone=dict(paradigm='spatial', spatial_granularity=(4, 2, 1, 1)))
