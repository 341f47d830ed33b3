# LAUD-RegNetY-400MF, layer skipping at t = 0.5: the recipe of the ResNets with the RegNet paper's
# augmentation (the batch is not stated there: that of ResNet-50).
_base_ = './laud_resnet50_layer_t05_in1k.py'

model = dict(
    teacher=dict(checkpoint='torchvision://regnet_y_400mf'),
    backbone=dict(_delete_=True, type='laud_mm.LAUDRegNet', arch='regnety_400mf',
                  paradigm='layer', out_indices=(3, )),
    head=dict(in_channels=440))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    # Principal components of ImageNet's colours, in order of BGR, as images are loaded.
    dict(type='Lighting', eigval=[0.2175, 0.0188, 0.0045],
         eigvec=[[-0.5836, -0.6948, 0.4203], [-0.5808, -0.0045, -0.814],
                 [-0.5675, 0.7192, 0.4009]],
         alphastd=25.5, to_rgb=False),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
