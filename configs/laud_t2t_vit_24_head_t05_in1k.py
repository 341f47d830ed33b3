# LAUD-T2T-ViT-24, head skipping alone at t = 0.5.
_base_ = './laud_t2t_vit_24_all_t05_in1k.py'

model = dict(backbone=dict(paradigm='head'))
