# SPDX-License-Identifier: Apache-2.0
"""Factories for `--model sample_nets:<name>`: networks that import, and networks that must not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Net(nn.Module):
    """`forward` is the function given; the modules it uses are attributes."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.input_shape: Any = (3, 16, 16)
        for name, module in modules.items():
            setattr(self, name, module)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def depthwise_separable(num_classes: int = 5) -> Net:
    """MobileNet's block: depthwise and pointwise, hard-swish, squeeze-and-excite, dropout."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = functional.hardswish(net.norm1(net.depthwise(x)))
        y = y * functional.hardsigmoid(net.excite(functional.adaptive_avg_pool2d(y, 1)))
        y = functional.relu6(net.norm2(net.pointwise(y)), inplace=True)
        return net.head(net.dropout(torch.flatten(functional.adaptive_avg_pool2d(y, 1), 1)))

    return Net(
        forward,
        depthwise=nn.Conv2d(3, 6, 3, 2, 1, groups=3, bias=False),
        norm1=nn.BatchNorm2d(6),
        excite=nn.Conv2d(6, 6, 1),
        pointwise=nn.Conv2d(6, 9, 1),
        norm2=nn.BatchNorm2d(9),
        dropout=nn.Dropout(0.5),
        head=nn.Linear(9, num_classes),
    )


def pre_activation() -> Net:
    """BatchNorm ahead of its convolution, a residual, an identity, a concatenation."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.identity(net.conv(functional.silu(net.norm(x)))) + x
        return torch.cat([y, functional.max_pool2d(x, 3, 1, 1)], 1)

    return Net(
        forward, norm=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 3, 3, padding=1), identity=nn.Identity()
    )


def shared_convolution() -> Net:
    """A convolution whose output is read beside its BatchNorm."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x)
        return net.norm(y) + y

    return Net(forward, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8))


def linear_norm() -> Net:
    """BatchNorm behind a linear layer and behind a transposed convolution."""
    return Net(
        lambda net, x: net.norm1(net.linear(net.norm2(net.up(x)).mean((2, 3)))),
        up=nn.ConvTranspose2d(3, 4, 2, 2),
        norm2=nn.BatchNorm2d(4, affine=False),
        linear=nn.Linear(4, 5),
        norm1=nn.BatchNorm1d(5),
    )


def pools() -> Net:
    """Pools whose corners differ between frameworks."""
    return Net(
        lambda _, x: (
            functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
            functional.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            functional.adaptive_avg_pool2d(x, (3, 5)),
        )
    )


def pools_of_no_stride() -> Net:
    """Arguments follow the stride, which is then given as an empty list."""
    return Net(
        lambda _, x: (
            functional.max_pool2d(x, 3, padding=1),
            functional.max_pool2d(x, (2, 3), dilation=2),
            functional.max_pool2d(x, 3, ceil_mode=True),
            functional.max_pool3d(x, (1, 3, 5), ceil_mode=True),
            functional.avg_pool2d(x, 3, padding=1),
        )
    )


def upsampling() -> Net:
    """Nearest to 7 pixels from 3, which half-pixel rounding gets wrong; bilinear, and doubled."""
    return Net(
        lambda _, x: {
            "nearest": functional.interpolate(functional.max_pool2d(x, 5), size=(7, 10)),
            "double": functional.interpolate(x, scale_factor=2),
            "bilinear": functional.interpolate(x, size=(21, 9), mode="bilinear"),
        }
    )


def rounded_upsampling() -> Net:
    """To sizes, and by factors, where float32 makes PyTorch's nearest pixel another."""

    def to(x: Tensor, extent: int, other: int) -> Tensor:
        return functional.interpolate(x[:, :, :extent, :extent], size=(other, extent + 1))

    return Net(
        lambda _, x: (
            *(to(x, *pair) for pair in ((2, 82), (12, 74), (14, 46), (14, 92))),
            functional.interpolate(x[:, :, :2, :3], scale_factor=(41.0, 2.0)),
            functional.interpolate(x, scale_factor=1.7),
            functional.interpolate(x, size=(10, 23)),
        )
    )


def indices() -> Net:
    """Negative ones: of an activation, of a weight, in a list, and computed from the input."""
    table = torch.arange(40.0).reshape(10, 4)
    return Net(
        lambda net, x: (
            x[:, -1] + net.table.weight[-2, -1],
            x.select(-2, -3),
            x[:, :, [-1, 0, 5]],
            net.table((torch.sigmoid(x[:, 0]) * 9).long()),
            torch.take(net.table.weight, (torch.sigmoid(x[:, 0]) * 9).long() - 9),
        ),
        table=nn.Embedding.from_pretrained(table),
    )


def several_indices() -> Net:
    """Zipped, as a grid, broadcast the other way round, and with axes between them."""
    rows, columns = torch.tensor([[0], [-2]]), torch.tensor([1, 3, 5])
    return Net(
        lambda _, x: (
            x[:, [0, -1], [1, -2]],
            x[:, :, rows, columns],
            x[:, :, rows.T, columns[:2, None]],
            x[:, [0, 1], :, [-1, 2]],
            functional.unfold(x, 3),
        )
    )


def scaled_operands() -> Net:
    """`alpha`, which TVM's importer drops."""
    return Net(
        lambda _, x: (
            torch.add(x, x.flip(2), alpha=3),
            torch.sub(x, 1.5, alpha=-2),
            torch.rsub(x, x.flip(2), alpha=2.5),
            torch.rsub(x, 1.5, alpha=2),
        )
    )


def integer_comparisons() -> Net:
    """With a half, which TVM's importer rounds; `linspace` has one inside."""

    def forward(_: Any, x: Tensor) -> Tensor:
        n = (x * 4).int()
        found = [n < 0.5, n <= 0.5, n > -0.5, n >= -0.5, n == 1.5, n != 1.5, n == 2, n < -0.5]
        return torch.stack([one.float() for one in found], 1) * torch.linspace(0, 1, 16)

    return Net(forward)


def booleans() -> Net:
    """Compared and added: TVM's code generation knows neither."""

    def forward(_: Any, x: Tensor) -> Tensor:
        b, c = x > 0, x > 0.3
        found = [b > 0.5, b <= 1, b < 2, b == 0.5, b != 1, b == c, b != c, b < c, b >= c]
        found += [b + c, b * ~c, torch.maximum(c, ~b), torch.minimum(~c, b)]
        return torch.stack([one.float() for one in found], 1)

    return Net(forward)


def integers_beside_floats() -> Net:
    """Which PyTorch makes floats of, and divides as floats at all times."""

    def forward(_: Any, x: Tensor) -> Tensor:
        n, b = (x * 9).int(), x > 0
        found = [n + 0.5, 0.5 - n, n.long() * 0.5, n - 1.5, n / 3, n / (n.abs() + 1), 3 / (n + 99)]
        found += [n.clamp(-2.5, 3.5), n.clamp(max=1.5), n**2.0, n % 2.5, b + 0.5, b / 3]
        found += [torch.where(b, x, n), torch.where(b, n, n.long() * 2).float()]
        return torch.stack(found, 1)

    return Net(forward)


def steps() -> Net:
    """With zeros, where the second operand stands."""
    return Net(lambda _, x: torch.heaviside(torch.relu(x), x * 0 + 0.5))


def statistics() -> Net:
    return Net(
        lambda _, x: (
            *torch.var_mean(x, (2, 3)),
            *torch.var_mean(x, 1, correction=0, keepdim=True),
            *torch.std_mean(x, -1),
            x.prod(1),
            x.prod(-1, keepdim=True),
        )
    )


def one_hot() -> Net:
    return Net(lambda _, x: functional.one_hot((x * 2).long() % 4, 4))


def bounds() -> Net:
    """Integers, on one side only; a lower bound above the upper."""
    return Net(
        lambda _, x: (
            x.clamp(0.5, -0.5),
            x.clamp(max=0.25),
            (x * 9).int().clamp(min=-2),
            (x * 9).int().clamp(-1, 3),
            functional.interpolate(x[:, 0], scale_factor=2, mode="linear"),
        )
    )


def relu() -> Net:
    return Net(lambda _, x: torch.relu(x))


def gray() -> Net:
    """One channel, an `input_shape` with a batch."""
    net = Net(lambda net, x: net.conv(x), conv=nn.Conv2d(1, 4, 3))
    net.input_shape = (7, 1, 12, 20)
    return net


def norms() -> Net:
    """Group and layer normalisation with weights, and SELU, whose scale TVM's importer drops."""
    return Net(
        lambda net, x: functional.selu(net.layer(net.group(net.conv(x)))),
        conv=nn.Conv2d(3, 6, 3, padding=1),
        group=nn.GroupNorm(2, 6),
        layer=nn.LayerNorm(16),
    )


def splits_of_one_part() -> Net:
    """A tuple of one for PyTorch and ONNX, a tensor for TVM."""
    return Net(lambda _, x: (x.split(4, 1)[0] * 2, x[:, :1].chunk(2, 1)[0] + 1))


def instance_norm() -> Net:
    return Net(lambda net, x: net.norm(x), norm=nn.InstanceNorm2d(3, affine=True))


def group_norm() -> Net:
    """Groups of several channels, in the middle of a module."""
    return Net(lambda net, x: net.norm(torch.cat([x, x.flip(3)], 1)), norm=nn.GroupNorm(2, 6))


def layer_norm() -> Net:
    return Net(lambda net, x: net.norm(x), norm=nn.LayerNorm([3, 16, 16]))


def returned_parameter() -> Net:
    def forward(net: Any, x: Tensor) -> Any:
        return net.conv(x), net.conv.bias

    return Net(forward, conv=nn.Conv2d(3, 4, 3))


class Nested:
    """Holds a factory as an attribute."""

    make = staticmethod(shared_convolution)


INSTANCE = shared_convolution()


# What must be refused, each in a way of its own.


def fft() -> Net:
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real

    return Net(forward)


def cumsum() -> Net:
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)

    return Net(forward)


def cumprod() -> Net:
    return Net(lambda _, x: torch.cumprod(x, 1))


def sort() -> Net:
    return Net(lambda _, x: torch.sort(x, -1)[0])


def topk() -> Net:
    return Net(lambda _, x: torch.topk(x, 2)[0])


def grid_sample() -> Net:
    def forward(_: Any, x: Tensor) -> Tensor:
        return functional.grid_sample(x, x[:, 0, :8, :8].reshape(-1, 8, 4, 2), align_corners=False)

    return Net(forward)


def plain_group_norm() -> Net:
    return Net(lambda _, x: functional.group_norm(x, 3))


def total() -> Net:
    return Net(lambda _, x: x.max())


def odd_divisor() -> Net:
    return Net(lambda _, x: functional.avg_pool2d(x, 3, divisor_override=5))


def odd_divisor_3d() -> Net:
    return Net(lambda _, x: functional.avg_pool3d(x[:, None], 2, divisor_override=3))


def antialias() -> Net:
    return Net(lambda _, x: functional.interpolate(x, size=5, mode="bilinear", antialias=True))


def corners_of_one_pixel() -> Net:
    return Net(lambda _, x: functional.interpolate(x, 1, mode="bilinear", align_corners=True))


def product_of_integers() -> Net:
    return Net(lambda _, x: (x * 9).int().prod(1))


def floored_by_a_half() -> Net:
    return Net(lambda _, x: torch.div((x * 9).int(), 2.5, rounding_mode="floor"))


def boolean_maximum() -> Net:
    return Net(lambda _, x: (x > 0).amax(1))


def sigmoid_of_integers() -> Net:
    return Net(lambda _, x: torch.sigmoid(x.long()))


def indices_of_a_pool() -> Net:
    return Net(lambda _, x: functional.max_pool2d(x, 2, return_indices=True))


def log_of_zero() -> Net:
    return Net(lambda _, x: torch.log(torch.relu(x)))


def small_table() -> Net:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.table(x.long())

    return Net(forward, table=nn.Embedding(10, 4))


def exponential() -> Net:
    return Net(lambda _, x: x + torch.empty_like(x).exponential_())


def fractional_bilinear() -> Net:
    return Net(lambda _, x: functional.interpolate(x, scale_factor=1.7, mode="bilinear"))


def boolean_index() -> Net:
    return Net(lambda _, x: x[x > 0])


def data_dependent() -> Net:
    return Net(lambda _, x: x if x.sum() > 0 else -x)


def extremes() -> Net:
    """Of axes, with places, and of windows."""

    def forward(_: Any, x: Tensor) -> Any:
        gate = torch.sigmoid(functional.adaptive_max_pool2d(x, 1))
        pooled = functional.adaptive_max_pool2d(x, (4, 8))
        least, place = x.min(-1, keepdim=True)
        return x.amax((2, 3)), x.amin(1, keepdim=True) * gate, pooled, least, place, x.max(1).values

    return Net(forward)


def uneven_windows() -> Net:
    return Net(lambda _, x: functional.adaptive_max_pool2d(x, 5))


def functional_dropout() -> Net:
    return Net(lambda _, x: functional.dropout(x))


def no_statistics() -> Net:
    net = Net(lambda net, x: net.norm(x))
    net.norm = nn.BatchNorm2d(3, track_running_stats=False)
    return net


def empty_slice() -> Net:
    return Net(lambda _, x: torch.cat([x[:, :0] * 2, x], 1) + 1)


def output_of_none() -> Net:
    return Net(lambda _, x: (x + 1, None))


def output_of_a_number() -> Net:
    return Net(lambda _, x: (x + 1, x.shape[2]))


def counter() -> Net:
    net = Net(lambda net, x: x + net.count.add_(1))
    net.register_buffer("count", torch.zeros(1))
    return net


def changes_input() -> Net:
    return Net(lambda _, x: x.mul_(2) + 1)


def random() -> Net:
    return Net(lambda _, x: x + torch.randn_like(x))


def double() -> Net:
    return shared_convolution().double()


def casts() -> Net:
    return Net(lambda _, x: x.double() * 2)


def identity() -> Net:
    return Net(lambda _, x: x)


def broken_forward() -> Net:
    return Net(lambda net, x: net.missing(x))


def bad_shape() -> Net:
    net = shared_convolution()
    net.input_shape = "large"
    return net


def raises() -> Net:
    raise RuntimeError("no weights here\nand a second line")


def needs_argument(width: int) -> Net:
    del width
    return shared_convolution()


def gives_number() -> int:
    return 5


NUMBER = 5
