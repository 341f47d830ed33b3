# LAUD-RegNetY-3.2GF, channel skipping in groups of 2 at t = 0.5.
_base_ = './laud_regnety_3.2gf_layer_t05_in1k.py'

model = dict(backbone=dict(paradigm='channel', channel_granularity=2))
