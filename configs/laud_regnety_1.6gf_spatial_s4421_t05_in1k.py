# LAUD-RegNetY-1.6GF, spatial skipping at t = 0.5 with the patches of the smaller nets.
_base_ = './laud_regnety_1.6gf_layer_t05_in1k.py'

model = dict(backbone=dict(paradigm='spatial', spatial_granularity=(4, 4, 2, 1)))
