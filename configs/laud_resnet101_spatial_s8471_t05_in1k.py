# LAUD-ResNet-101, spatial skipping at t = 0.5, patches as the paper found best.
_base_ = './laud_resnet101_layer_t05_in1k.py'

model = dict(backbone=dict(paradigm='spatial', spatial_granularity=(8, 4, 7, 1)))
