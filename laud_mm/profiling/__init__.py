"""Profiling: measure the executor's steps and whole backbones, and calibrate the predictor."""
