"""MNIST at full size, as in section 3 of Hinton, Vinyals & Dean (2015)."""
