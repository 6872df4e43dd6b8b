import pytest
import torch

from deeplin import DeepLinear, init
from deeplin.network import gap_norm

CASES = [([5, 3, 4], ()), ([6, 3, 5, 4, 6], (4,)), ([4, 4, 4, 4], ()), ([3, 7, 5, 4], (2, 3))]


@pytest.fixture(params=CASES, ids=str)
def net(request):
    widths, batch = request.param
    return DeepLinear(widths, batch_shape=batch, dtype=torch.float64)


def gap(net):
    return float(gap_norm([w.detach() for w in net.weights]).max())


def product(net):
    return net.end_to_end().detach()


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.statement("BRTW Prop. 12")
@pytest.mark.statement("BRTW Definition 1")
def test_balanced_layers_of_a_product(net, randn, generator, rotate, k, seen):
    W = randn(*net.batch_shape, net.widths[-1], k) @ randn(*net.batch_shape, k, net.widths[0])
    assert init.balanced_(net, W, rotate=rotate, generator=generator) is net
    seen.below(gap(net) / float(W.norm()), 1e-13)
    seen.close(product(net), W, rtol=1e-12, atol=1e-12)


def test_balanced_takes_no_root_of_round_off(randn):
    net = DeepLinear([6, 4, 4, 4, 4, 4, 4, 4, 4, 4, 6], dtype=torch.float64)
    W = randn(6, 2) @ randn(2, 6)
    init.balanced_(net, W)
    assert all(int(torch.linalg.matrix_rank(w)) == 2 for w in net.weights)
    torch.testing.assert_close(product(net), W, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.statement("BRTW §7.1.1")
def test_orthogonal_start(net, generator, scale, rank, seen):
    init.orthogonal_balanced_(net, scale=scale, rank=rank, generator=generator)
    k = rank or min(net.widths)
    s = torch.linalg.svdvals(product(net))
    torch.testing.assert_close(s[..., :k], torch.full_like(s[..., :k], scale))
    seen.below(s[..., k:].max() if s.shape[-1] > k else 0, 1e-14)
    seen.below(gap(net), 1e-13)


@pytest.mark.statement("BRTW §7.1.1, E6")
def test_tied_ends_satisfy_condition_37_and_free_ends_rarely_do(generator, seen):
    net = DeepLinear([8, 4, 6, 8], batch_shape=(4000,), dtype=torch.float64)
    U = torch.linalg.qr(torch.randn(8, 4, dtype=torch.float64, generator=generator)).Q

    def fraction():
        W = product(net)
        return float(((U.mT @ W @ U).diagonal(dim1=-2, dim2=-1) > 0).all(-1).double().mean())

    init.orthogonal_balanced_(net, tied=True, generator=generator)
    assert fraction() == 1
    torch.testing.assert_close(product(net) @ product(net), product(net))
    init.orthogonal_balanced_(net, generator=generator)
    # About 2^{-r} for independent ends, not certain as BRTW §7.1.1 has it.
    free = fraction()
    seen.number("fraction of 4000 draws with (37), r = 4", free)
    seen(free - 2.0**-4, 0.03)


def test_gaussian_scale_and_gap_are_those_stated(generator):
    for std in (None, 0.3, [0.5, 0.2, 0.4]):
        net = DeepLinear([5, 3, 6, 4], batch_shape=(20000,), dtype=torch.float64)
        init.gaussian_(net, std, generator=generator)
        d = net.widths
        s = [x**-0.5 for x in d[1:]] if std is None else [std] * 3 if std == 0.3 else std
        expected = d[0] * (s[0] * s[1] * s[2]) ** 2 * d[1] * d[2] * d[3]
        norm = product(net).square().sum((-2, -1)).mean()
        assert float(norm) == pytest.approx(expected, rel=0.05)
        for j, matrix in enumerate(net.balancedness_gap(), start=1):
            a, b, p, after, before = s[j] ** 2, s[j - 1] ** 2, d[j], d[j + 1], d[j - 1]
            expected = (
                a**2 * after * p * (after + p + 1)
                + b**2 * before * p * (before + p + 1)
                - 2 * a * b * after * before * p
            )
            measured = matrix.detach().square().sum((-2, -1)).mean()
            assert float(measured) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("rank", [None, 1])
def test_identity_start(net, rank):
    init.identity_(net, scale=0.2, rank=rank)
    k = rank or min(net.widths)
    expected = torch.zeros(net.widths[-1], net.widths[0], dtype=torch.float64)
    expected[range(k), range(k)] = 0.2
    torch.testing.assert_close(product(net), expected.expand_as(product(net)))
    assert gap(net) < 1e-15


@pytest.mark.parametrize("widths", [[6, 2, 6], [6, 4, 3, 6]])
@pytest.mark.statement("BRTW Remark 42")
def test_special_start(randn, widths, seen):
    V = torch.linalg.qr(randn(6, 2)).Q
    net = init.special_(DeepLinear(widths, dtype=torch.float64), V, scale=0.7)
    seen.close(product(net), -0.7 * V @ V.mT, rtol=1e-7, atol=1e-7)
    seen.below(gap(net), 1e-14)
    assert bool(((V.mT @ product(net) @ V).diagonal() < 0).all())


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (lambda net: init.balanced_(net, torch.ones(2, 2)), r"\(d_N, d_0\) = \(4, 5\)"),
        (lambda net: init.balanced_(net, torch.full((4, 5), torch.nan)), "finite"),
        (lambda net: init.balanced_(net, torch.eye(4, 5)), "rank <= the smallest width 3"),
        (lambda net: init.orthogonal_balanced_(net, scale=0.0), "scale must be positive"),
        (lambda net: init.orthogonal_balanced_(net, tied=True), "tied=True needs d_0 = d_N"),
        (lambda net: init.orthogonal_balanced_(net, rank=4), "1 <= rank <= min widths = 3"),
        (lambda net: init.gaussian_(net, -1.0), "std must be a positive number"),
        (lambda net: init.gaussian_(net, [1.0]), "depth = 2"),
        (lambda net: init.identity_(net, rank=0), "1 <= rank"),
        (lambda net: init.special_(net, torch.eye(5, 2)), "d = d_0 = d_N"),
    ],
)
def test_bad_input(start, sentence):
    with pytest.raises(ValueError, match=sentence):
        start(DeepLinear([5, 3, 4]))
