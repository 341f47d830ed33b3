# LAUD-ResNet-50, single positions at t = 0.5: the granularity of DynConv.
_base_ = './laud_resnet50_layer_t05_in1k.py'

model = dict(backbone=dict(paradigm='spatial', spatial_granularity=1))
