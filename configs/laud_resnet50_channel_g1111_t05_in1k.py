# LAUD-ResNet-50, single channels at t = 0.5: the granularity of BAS.
_base_ = './laud_resnet50_layer_t05_in1k.py'

model = dict(backbone=dict(paradigm='channel', channel_granularity=1))
