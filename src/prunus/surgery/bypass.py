"""What stands in the place of a module that was left out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Bypass(nn.Module):
    """Gives back one of its inputs, or zeros of its shape; holds no parameters and computes nothing.

    It is called, and returns, as the module that it replaces: other outputs of a tuple are None. The plain attributes
    of that module stay readable, its parameters are None, since the code around may ask for them.

    Args:
        argument: the input concerned, by position ("0") or keyword.
        returned: length of the tuple to return; 0 returns a tensor.
        output: position in that tuple.
        zero: return zeros.
        replaced: the module whose place it takes.

    >>> import torch
    >>> Bypass(returned=2)(torch.ones(2))
    (tensor([1., 1.]), None)
    """

    def __init__(
        self,
        argument: str = "0",
        returned: int = 0,
        output: int = 0,
        *,
        zero: bool = False,
        replaced: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if replaced is not None:
            for name, value in vars(replaced).items():
                if not name.startswith("_") and isinstance(value, bool | int | float | str):
                    setattr(self, name, value)
            for name in replaced._parameters:
                self.register_parameter(name, None)
            self.replaced = type(replaced).__name__
        self.argument, self.returned, self.output, self.zero = argument, returned, output, zero

    def extra_repr(self) -> str:
        """What it replaced and what it gives."""
        gives = "zeros" if self.zero else "its input"
        return f"{getattr(self, 'replaced', 'nothing')}, gives {gives}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The input chosen, or zeros, in a tuple where the replaced module returned one."""
        value: Tensor = args[int(self.argument)] if self.argument.isdigit() else kwargs[self.argument]
        value = value.new_zeros(value.shape) if self.zero else value
        if not self.returned:
            return value
        return tuple(value if i == self.output else None for i in range(self.returned))
