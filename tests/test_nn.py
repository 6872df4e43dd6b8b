"""FixedRankLinear against torch.nn.Linear with the same dense weight."""

import copy
import io

import geoopt
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from deeplin.nn import FixedRankLinear
from deeplin.optim import RiemannianSGD


def layer_of(rank=3, seed=0, **options):
    torch.manual_seed(seed)
    return FixedRankLinear(7, 9, rank, dtype=torch.float64, **options)


def test_it_computes_what_the_dense_layer_does():
    layer = layer_of()
    dense = layer.to_linear()
    assert type(dense) is nn.Linear
    for shape in ((7,), (5, 7), (2, 5, 7)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(layer(x), dense(x), rtol=0, atol=1e-13)
    assert int(torch.linalg.matrix_rank(dense.weight)) == 3


@pytest.mark.parametrize("depth", [1, 2, 3.5])
def test_a_step_is_that_of_the_metric_on_the_dense_gradient(depth):
    """First order in the step: W(h) = W − h 𝒜_W(G) + O(h²), with 𝒜_W from dense powers."""
    layer = layer_of(depth=depth)
    x, y = torch.randn(20, 7, dtype=torch.float64), torch.randn(20, 9, dtype=torch.float64)
    W = layer.weight.detach().clone().requires_grad_()
    nn.functional.mse_loss(nn.functional.linear(x, W, layer.bias), y).backward()
    G = W.grad
    U, s, Vh = torch.linalg.svd(W.detach(), full_matrices=False)
    U, s, Vh = U[:, :3], s[:3], Vh[:3]
    P, Q = U @ U.mT, Vh.mT @ Vh
    if depth == 1:
        moved = P @ G + G @ Q - P @ G @ Q
    else:  # ∑_j σ_i^{2(N−j)/N} σ_k^{2(j−1)/N}, real N: its closed form on the three blocks
        q = 2 / depth
        a, b = s[:, None] ** 2, s[None] ** 2
        both = torch.where(
            (a - b).abs() < 1e-9 * a,
            depth * a ** (1 - q / 2),
            (a - b) / (a ** (q / 2) - b ** (q / 2)),
        )
        core = U @ (both * (U.mT @ G @ Vh.mT)) @ Vh
        left = U @ torch.diag(s ** (2 - q)) @ U.mT @ G @ (torch.eye(7) - Q)
        right = (torch.eye(9) - P) @ G @ Vh.mT @ torch.diag(s ** (2 - q)) @ Vh
        moved = core + left + right
    errors = []
    for h in (1e-3, 5e-4):
        new = copy.deepcopy(layer)
        optimizer = geoopt.optim.RiemannianSGD(new.parameters(), lr=h)
        nn.functional.mse_loss(new(x), y).backward()
        optimizer.step()
        errors.append(float((new.weight.detach() - W.detach() + h * moved).norm()) / h)
    assert errors[1] < 0.6 * errors[0]  # O(h): it falls with the step
    assert errors[1] < 0.01 * float(moved.norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (20, 7), (2, 3, 7)])
def test_the_gradients_are_autograds(shape, bias):
    """Through factor_pair, whose gradients are written nowhere; (GV, GᴴU, UᴴGV) of the dense G."""
    layer = layer_of(bias=bias)
    layer.factors.data[-3:] = torch.randn(3, 3, dtype=torch.float64)  # any core
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    weights = torch.randn(*shape[:-1], 9, dtype=torch.float64)
    found = torch.autograd.grad((weights * layer(x).sin()).sum(), wanted)
    A, B = layer.manifold.factor_pair(layer.factors)
    y = nn.functional.linear(x, A @ B.mT, layer.bias)
    expected = torch.autograd.grad((weights * y.sin()).sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-14
    W = layer.weight.detach().requires_grad_()
    G = torch.autograd.grad((weights * nn.functional.linear(x, W, layer.bias).sin()).sum(), W)[0]
    U, _, V = layer.manifold.unpack_tensor(layer.factors.detach())
    dense = torch.cat([G @ V, G.mT @ U, U.mT @ G @ V])
    assert float((found[1] - dense).norm() / dense.norm()) < 1e-14


def test_only_what_is_asked_for_gets_a_gradient():
    layer = layer_of()
    layer.bias.requires_grad_(False)
    layer(torch.randn(4, 7, dtype=torch.float64)).sum().backward()
    assert layer.factors.grad is not None
    assert layer.bias.grad is None
    frozen = layer_of().requires_grad_(False)
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    frozen(x).sum().backward()
    torch.testing.assert_close(x.grad, frozen.weight.sum(0).expand(4, 7), rtol=0, atol=1e-13)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(3, 14, dtype=torch.float64))


def test_it_can_be_differentiated_twice_forwards_and_in_batches():
    """A penalty on the input's gradient, a forward derivative, one gradient for each sample."""
    layer = layer_of()
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    A, B = layer.manifold.factor_pair(layer.factors)
    grads = []
    for y in (layer(x), nn.functional.linear(x, A @ B.mT, layer.bias)):
        (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(slope.square().sum(), [x, *layer.parameters()]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    v = torch.randn(4, 7, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        y = layer(torch.autograd.forward_ad.make_dual(x, v))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, v @ layer.weight.mT, rtol=0, atol=1e-13)

    def loss(factors, row):
        return torch.func.functional_call(layer, {"factors": factors}, row).sin().sum()

    factors = layer.factors.detach().as_subclass(torch.Tensor)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(factors, x.detach())
    layer(x).sin().sum().backward()
    torch.testing.assert_close(each.sum(0), layer.factors.grad, rtol=1e-12, atol=1e-13)


def test_from_linear_is_the_best_approximation():
    torch.manual_seed(1)
    dense = nn.Linear(7, 9, dtype=torch.float64)
    layer = FixedRankLinear.from_linear(dense, 4)
    tail = torch.linalg.svdvals(dense.weight.detach())[4:].square().sum().sqrt()
    error = (layer.weight - dense.weight).detach().norm()
    assert abs(float(error / tail) - 1) < 1e-12
    assert torch.equal(layer.bias, dense.bias)
    assert layer.bias is not dense.bias
    whole = FixedRankLinear.from_linear(nn.Linear(7, 9, bias=False, dtype=torch.float64), 7)
    assert whole.bias is None


def test_from_linear_refuses_a_weight_of_lower_rank():
    dense = nn.Linear(7, 9, dtype=torch.float64)
    dense.weight = nn.Parameter(torch.ones(9, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"must have rank 2 at least; it has rank 1"):
        FixedRankLinear.from_linear(dense, 2)
    with pytest.raises(ValueError, match="1 <= rank <= min"):
        FixedRankLinear.from_linear(dense, 8)


def test_with_rank_truncates_and_grows():
    layer = layer_of(4)
    optimizer = geoopt.optim.RiemannianSGD(layer.parameters(), lr=0.05)
    for _ in range(5):  # away from equal singular values
        optimizer.zero_grad()
        layer(torch.randn(6, 7, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    W = layer.weight.detach()
    sigma = torch.linalg.svdvals(W)
    less = layer.with_rank(2)
    assert float((less.weight - W).detach().norm()) == pytest.approx(
        float(sigma[2:4].norm()), rel=1e-10
    )
    more = layer.with_rank(6)
    expected = torch.cat([sigma[:4], sigma[3] * 1e-3 * torch.ones(2, dtype=torch.float64)])
    torch.testing.assert_close(torch.linalg.svdvals(more.weight.detach())[:6], expected)
    assert float((more.weight - W).detach().norm()) == pytest.approx(
        float(sigma[3]) * 1e-3 * 2**0.5
    )
    assert torch.equal(more.bias, layer.bias)
    with pytest.raises(ValueError, match="0 < value"):
        layer.with_rank(6, value=-1.0)
    with pytest.raises(ValueError, match="1 <= rank <= min"):
        layer.with_rank(8)


def test_its_start_has_the_variance_of_torchs_own():
    """E‖Wx‖²/m over x of covariance I is 1/3, as for nn.Linear's uniform start."""
    torch.manual_seed(2)
    layer = FixedRankLinear(300, 200, 5, dtype=torch.float64)
    assert float(layer.weight.detach().square().sum() / 200) == pytest.approx(1 / 3, rel=1e-12)
    dense = nn.Linear(300, 200, dtype=torch.float64)
    assert float(dense.weight.detach().square().sum() / 200) == pytest.approx(1 / 3, rel=0.02)
    assert float(layer.bias.detach().abs().max()) <= 300**-0.5


def test_it_is_copied_saved_and_moved_as_any_layer():
    layer = layer_of(depth=2)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = layer_of(seed=5, depth=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(layer)
    whole = io.BytesIO()
    torch.save(layer, whole)
    whole.seek(0)
    again = torch.load(whole, weights_only=False)
    x = torch.randn(4, 7, dtype=torch.float64)
    for copied in (other, twin, again):
        assert torch.equal(copied(x), layer(x))
        assert isinstance(copied.factors, geoopt.ManifoldParameter)
        assert copied.manifold.depth == 2
        optimizer = geoopt.optim.RiemannianSGD(copied.parameters(), lr=0.1)
        copied(x).square().sum().backward()
        optimizer.step()
        assert not torch.equal(copied(x), layer(x))
        assert int(torch.linalg.matrix_rank(copied.weight)) == 3
    single = twin.to(torch.float32)
    assert single(x.float()).dtype == single.factors.dtype == torch.float32
    assert isinstance(single.factors, geoopt.ManifoldParameter)


def test_autocast_computes_in_its_dtype_and_keeps_the_factors():
    torch.manual_seed(3)
    layer = FixedRankLinear(7, 9, 3)
    x = torch.randn(4, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert layer.factors.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_it_compiles():
    layer = layer_of()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), layer(x))


def test_it_says_what_it_is():
    said = "in_features=7, out_features=9, rank=2, depth=3, bias=False"
    assert said in repr(layer_of(2, depth=3, bias=False))
    with pytest.raises(ValueError, match="1 <= rank <= min"):
        layer_of(8)


@pytest.mark.slow
def test_on_the_digits_it_learns_what_dense_layers_do():
    """64→512→512→10, rank 16, SGD with momentum, five seeds: 0.90 of 360 images in the mean."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    accuracies = []
    for seed in range(5):
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        test, train = order[:360], order[360:]
        net = nn.Sequential(
            FixedRankLinear(64, 512, 16),
            nn.ReLU(),
            FixedRankLinear(512, 512, 16),
            nn.ReLU(),
            nn.Linear(512, 10),
        )
        optimizer = RiemannianSGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(15):
            for rows in train[torch.randperm(len(train))].split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            accuracies.append(float((net(x[test]).argmax(1) == y[test]).float().mean()))
    assert sum(accuracies) / 5 >= 0.90, accuracies
