# Layer skipping on the digits at t = 0.6, from the trained static net, with all of the recipe.
_base_ = './laud_resnet_digits_static.py'

model = dict(
    type='laud_mm.DistillationClassifier',
    teacher=dict(checkpoint='work_dirs/digits/static/epoch_30.pth'),
    backbone=dict(paradigm='layer'))

optim_wrapper = dict(optimizer=dict(lr=0.01))
default_hooks = dict(activation=dict(
    type='laud_mm.ActivationHook', target=0.6, weight=10.0, bounds=True,
    temperature=dict(type='exponential', start=5.0, end=0.1)))
