"""A small network written out by hand, model and graph: the graph's reader is tested without the tracer."""

from __future__ import annotations

from torch import Tensor, nn

from prunus.types import Fixed, Graph, Group, InputSpec, Operator, Place, Product, TensorInfo, Units


class TwoLayers(nn.Module):
    """3x3 conv 2 -> 4, batch norm, ReLU, flatten, linear 4*3*3 -> 5, on 3x3 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


def two_layers_graph(batch: int = 2) -> Graph:
    c, b = Units("conv", 4), Fixed(batch)
    flat = Product((c, Fixed(9)))
    places = (
        Place("conv.weight", 0, c, "out"),
        Place("conv.bias", 0, c, "shift"),
        Place("norm.weight", 0, c, "scale"),
        Place("norm.bias", 0, c, "shift"),
        Place("norm.running_mean", 0, c, "statistic"),
        Place("norm.running_var", 0, c, "statistic"),
        Place("head.weight", 1, flat, "in"),
    )
    image = (Fixed(3), Fixed(3))
    operators = (
        Operator("aten.convolution", "conv", "", ((b, c, *image),), ((18, (b, c, *image)),), "conv.weight"),
        Operator("aten.addmm", "head", "", ((b, Fixed(5)),), ((1, (b, flat, Fixed(5))),), "head.weight"),
    )
    tensors = {
        "conv.weight": TensorInfo((c, Fixed(2), *image), 4, True),
        "conv.bias": TensorInfo((c,), 4, True),
        "norm.weight": TensorInfo((c,), 4, True),
        "norm.bias": TensorInfo((c,), 4, True),
        "norm.running_mean": TensorInfo((c,), 4, False),
        "norm.running_var": TensorInfo((c,), 4, False),
        "norm.num_batches_tracked": TensorInfo((), 8, False),
        "head.weight": TensorInfo((Fixed(5), flat), 4, True),
        "head.bias": TensorInfo((Fixed(5),), 4, True),
    }
    spec = InputSpec("tensor", {"0": ((batch, 2, 3, 3), "float32", -1.0, 1.0)})
    return Graph((Group("conv", 4, places),), (), (), tensors, operators, (), spec, batch)
