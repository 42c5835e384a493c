"""Names of quantized tensors and kernels; no two of a network are the same.

flax takes any text as the name of a module, so that no separator is safe by itself:
where ":", "." or "%" is part of a module's name it is percent-encoded.
"""


def use(path: str, n: int) -> str:
    """Return the name of the n-th use of a path, from 0.

    >>> use("block/fc", 0), use("block/fc", 1), use("fc:1", 0)
    ('block/fc', 'block/fc:1', 'fc%3A1')
    """
    quoted = path.replace("%", "%25").replace(":", "%3A")
    return f"{quoted}:{n}" if n else quoted


def part(name: str, what: str, n: int = 0) -> str:
    """Return the name of something that belongs to the layer of this name.

    >>> part("block/fc", "input"), part("block/fc:1", "input", 1)
    ('block/fc:input', 'block/fc:1:input:1')
    """
    return f"{name}:{what}:{n}" if n else f"{name}:{what}"


IMAGE = part("", "input")  # the input of the whole network


def key(name: str) -> str:
    """Return a name as a key of nested variables, without "/".

    >>> key("block/fc:1"), key("block/fc.1")
    ('block.fc:1', 'block.fc%2E1')
    """
    return name.replace(".", "%2E").replace("/", ".")
