# LAUD-RegNetY-1.6GF, layer skipping at t = 0.5.
_base_ = './laud_regnety_400mf_layer_t05_in1k.py'

model = dict(
    teacher=dict(checkpoint='torchvision://regnet_y_1_6gf'),
    backbone=dict(arch='regnety_1.6gf'),
    head=dict(in_channels=888))
