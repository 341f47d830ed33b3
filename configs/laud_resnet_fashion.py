# Layer skipping on Fashion-MNIST at t = 0.6, from the trained static net, with all of the recipe.
_base_ = './laud_resnet_fashion_static.py'

model = dict(
    type='laud_mm.DistillationClassifier',
    teacher=dict(checkpoint='work_dirs/fashion/static/epoch_10.pth'),
    loss_kd=dict(weight=0.5, temperature=4.0),
    backbone=dict(paradigm='layer'))

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = dict(T_max=max_epochs)
# In 2,580 iterations the maskers, which start with everything on, have to walk faster and come to
# decisions clear enough to be the same without noise.
optim_wrapper = dict(
    optimizer=dict(lr=0.02),
    paramwise_cfg=dict(custom_keys={'masker': dict(lr_mult=20.0)}))
default_hooks = dict(activation=dict(
    type='laud_mm.ActivationHook', target=0.6, weight=10.0, bounds=True,
    temperature=dict(type='exponential', start=5.0, end=0.1)))
