"""The learner's room: losses, optimizers, the K-update block, publishing and the Ray shell."""
