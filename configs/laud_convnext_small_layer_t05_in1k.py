# LAUD-ConvNeXt-S, layer skipping at t = 0.5.
_base_ = './laud_convnext_tiny_layer_t05_in1k.py'

model = dict(
    teacher=dict(checkpoint='torchvision://convnext_small'),
    backbone=dict(arch='small', drop_path_rate=0.4))
