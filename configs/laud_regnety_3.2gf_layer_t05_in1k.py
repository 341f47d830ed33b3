# LAUD-RegNetY-3.2GF, layer skipping at t = 0.5.
_base_ = './laud_regnety_400mf_layer_t05_in1k.py'

model = dict(
    teacher=dict(checkpoint='torchvision://regnet_y_3_2gf'),
    backbone=dict(arch='regnety_3.2gf'),
    head=dict(in_channels=1512))
