"""Knowledge distillation and model compression in pure JAX.

Modules are imported by name, `from jaxkd import losses`, so that using one of them does
not load the others' dependencies.
"""

__version__ = "0.1.0"
