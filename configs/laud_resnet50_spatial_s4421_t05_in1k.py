# LAUD-ResNet-50, spatial skipping at t = 0.5, patches as the paper found best.
_base_ = './laud_resnet50_layer_t05_in1k.py'

model = dict(backbone=dict(paradigm='spatial', spatial_granularity=(4, 4, 2, 1)))
