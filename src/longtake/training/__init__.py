"""Training. :mod:`~longtake.training.run` carries the stages of ``longtake train``; see ``docs/train.md``.

The modules ``autoencoder``, ``denoiser``, ``rollout`` and what they share (``loop``, ``optim``) made the shipped pocket
model.
"""
