from jaxkd.losses._kd import kd
__all__ = ["kd"]
