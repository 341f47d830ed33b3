# LAUD-ConvNeXt-T, layer skipping at t = 0.5: the recipe of the ResNets with ConvNeXt's optimiser.
# Nobody has published one for ConvNeXt: the learning rate is not verified.
_base_ = './laud_resnet50_layer_t05_in1k.py'

model = dict(
    teacher=dict(checkpoint='torchvision://convnext_tiny'),
    backbone=dict(_delete_=True, type='laud_mm.LAUDConvNeXt', arch='tiny', paradigm='layer',
                  drop_path_rate=0.1),
    neck=None,  # the backbone's norm comes after its means
    head=dict(in_channels=768))

optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.05))
