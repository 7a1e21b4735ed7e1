"""Training: the loop, moving average, checkpoints, logs and the machine around them.

`fit` trains a model and continues a run; `checkpoint` opens and saves models.
"""
