# LAUD-ConvNeXt-T, spatial skipping at t = 0.5.
_base_ = './laud_convnext_tiny_layer_t05_in1k.py'

model = dict(backbone=dict(paradigm='spatial', spatial_granularity=(4, 4, 2, 1)))
