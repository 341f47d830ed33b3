# LAUD-T2T-ViT-14, layer skipping alone at t = 0.5.
_base_ = './laud_t2t_vit_14_all_t05_in1k.py'

model = dict(backbone=dict(paradigm='layer'))
