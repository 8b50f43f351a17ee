"""Grow an image network into a video network: temporal layers after its blocks, nothing else touched.

The layers become children named `temporal` of the blocks they follow and run as forward hooks. Spatial weights
keep their names, so every image checkpoint loads; keys with `.temporal.` are the only new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

CHILD = "temporal"

Maker = Callable[[int, str], nn.Module]
"""(channels, name of the block) -> the layer that follows it."""


def inject(network: nn.Module, makers: Mapping[type[nn.Module], Maker]) -> list[str]:
    """Put a temporal layer after every block of `network` whose class is in `makers`.

    Args:
        network: changed in place.
        makers: block class -> maker of the layer that follows such blocks.

    Returns:
        The names of the blocks that got a layer.

    Raises:
        ValueError: no block of these classes is there, or a block has a layer already.
    """
    blocks = [(name, block) for name, block in network.named_modules() if type(block) in makers]
    if not blocks:
        kinds = ", ".join(sorted(kind.__name__ for kind in makers))
        raise ValueError(f"{type(network).__name__} has no block to inject after; looked for {kinds}")
    for name, block in blocks:
        if hasattr(block, CHILD):
            raise ValueError(f"{name} has temporal layers already")
        attach(block, makers[type(block)](_out_channels(block), name))
    return [name for name, _ in blocks]


def attach(block: nn.Module, layer: nn.Module) -> None:
    """Put one temporal layer after one block."""
    block.add_module(CHILD, layer)
    block.register_forward_hook(_run_temporal)


def is_temporal(parameter_name: str) -> bool:
    """Tell whether a parameter (by its full name) belongs to an injected layer."""
    return f".{CHILD}." in f".{parameter_name}"


def temporal_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the injected layers' parameters by name."""
    return {name: p for name, p in network.named_parameters() if is_temporal(name)}


def _run_temporal(block: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
    layer = getattr(block, CHILD)
    if isinstance(output, Tensor):
        return layer(output)
    if isinstance(output, tuple):
        return (layer(output[0]), *output[1:])
    output.sample = layer(output.sample)
    return output


def _out_channels(block: nn.Module) -> int:
    for attribute in ("out_channels", "in_channels"):  # Transformer2DModel may leave out_channels unset
        channels = getattr(block, attribute, None)
        if isinstance(channels, int):
            return channels
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise ValueError(f"{type(block).__name__}: cannot tell its output channels")
    return [m for m in convs if m.kernel_size != (1, 1)][-1].out_channels
