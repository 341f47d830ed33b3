# LAUD-ResNet-101, layer skipping at t = 0.5.
_base_ = './laud_resnet50_layer_t05_in1k.py'

model = dict(teacher=dict(checkpoint='torchvision://resnet101'), backbone=dict(depth=101))

train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=0.01 * 512 / 128))
