"""What one adds to the runner takes one piece of code and one YAML file, and no edit elsewhere."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from runner import ROOT, SMALL, train_with

from deeplin import DeepLinear, from_loss
from deeplin.integrators import Integrator
from deeplin.network import init
from deeplin.problems.data import Data
from deeplin.runner import targets
from deeplin.runner.configurations import Configurations
from deeplin.runner.run import run

FIXED = (
    "_target_: deeplin.runner.methods.fixed_steps\nintegrator: {_target_: test_extending.Heun}\n"
)
MORE = {
    "method/adam.yaml": "name: adam\n_target_: deeplin.runner.methods.optimizer_steps\n"
    "optimizer: {_target_: torch.optim.Adam, _partial_: true, betas: [0.8, 0.99]}\n"
    "_flows_: [layers]\ndt: 0.01\nt1: 2\n",
    "method/heun.yaml": f"name: heun\n{FIXED}dt: auto\nsafety: 0.5\nt1: auto\n",
    "init/eyes.yaml": "name: eyes\n_target_: test_extending.eyes\nsize: 0.5\n",
    "problem/quartic.yaml": "name: quartic\n_target_: test_extending.quartic\nd: 6\n",
}


class Heun(Integrator):
    """The trapezoidal rule, explicit."""

    order, stability_limit = 2, 2.0

    def step(self, flow, t, y, dt):
        k = flow.velocity(t, y)
        l = flow.velocity(t + dt, tuple(a + dt * b for a, b in zip(y, k, strict=True)))  # noqa: E741
        return tuple(a + 0.5 * dt * (b + c) for a, b, c in zip(y, k, l, strict=True))


def eyes(net: DeepLinear, *, size: float) -> None:
    init.identity_(net, scale=size)


def quartic(generator: torch.Generator, *, d: int) -> Data:
    """Σ (W − A)⁴/4 for a random A: a loss of which nothing is known."""
    A = torch.randn(d, d, dtype=torch.float64, generator=generator)
    problem = from_loss(lambda W: 0.25 * (W - A).pow(4).sum((-2, -1)), (d, d))
    return Data(problem, notes=("a loss of its own",))


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of conf/ with the files above; this module is trusted."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name, text in MORE.items():
        (tmp_path / "conf" / name).write_text(text)
    monkeypatch.setattr(targets._Trusted(), "packages", {"deeplin"})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf"


def train(conf, *arguments, draw=False):
    return train_with(conf, *arguments, "hydra.run.dir=run", draw=draw)


def end_of(conf):
    return json.loads((conf.parent / "run" / "summary.json").read_text())


@pytest.mark.parametrize(
    "words", [["method=heun"], ["init=eyes", "init.size=0.3"], ["method=adam", "method.dt=0.02"]]
)
def test_one_yaml_adds_an_integrator_a_start_an_optimizer(conf, words):
    targets.trust("test_extending")
    small = [word for word in SMALL if not (word.startswith("method") and "method" in words[0])]
    assert train(conf, *small, *words) == 0
    end = end_of(conf)
    if "adam" not in words[0]:
        assert end["verdict"].startswith("Theory and run agree")
    assert end["loss"] < 10 * end["optimal_loss"]


@pytest.mark.parametrize("flow", ["layers", "end_to_end"])
def test_one_yaml_adds_a_loss_of_which_nothing_is_known(conf, flow, capsys):
    targets.trust("test_extending")
    words = ["problem=quartic", "network.rank=3", "network.depth=2", "method=rk4", f"flow={flow}"]
    assert train(conf, *words, "method.t1=2", "log.records=50", draw=flow == "layers") == 0
    end = end_of(conf)
    assert end["optimal_loss"] is end["distance_to_limit"] is end["rate_predicted"] is None
    assert end["verdict"].startswith("Nothing is predicted for this loss: W is still on its way")
    records = torch.load("run/checkpoint.pt", weights_only=True)["history"]["observed"]
    assert (records["loss"].diff() < 0).all()
    figures = conf.parent / "run" / "figures"
    assert (figures / "convergence.png").exists() == (flow == "layers")
    shutil.rmtree("run")
    capsys.readouterr()
    assert train(conf, *words, "method.t1=20/rho") == 2
    assert "give method.t1=<flow time>" in capsys.readouterr().err


def test_options_of_an_added_file_have_nearest_names_and_help(conf, capsys):
    assert train(conf, "method=heum") == 2
    assert "the nearest valid names are method=heun" in capsys.readouterr().err
    assert train(conf, "init=eyes", "init.sise=1") == 2
    assert "the nearest valid names are init.size" in capsys.readouterr().err
    assert train(conf, "init=eyes", "init.size=big") == 2
    assert "init.size must be a number, as its default 0.5; got 'big'" in capsys.readouterr().err
    assert train(conf, "--help") == 0
    page = capsys.readouterr().out
    assert all(f"    {name}" in page for name in ("balanced", "eyes", "gaussian", "heun"))
    assert train(conf, "method=heun", "--help") == 0
    page = capsys.readouterr().out
    assert "method.safety=0.5\n        fraction of the stability limit" in page
    assert "(a number in (0, 1])" in page
    assert "_target_" not in page


def test_a_file_that_has_changed_is_read_anew(conf):
    """Compositions are kept from test to test."""
    for size in (0.5, 0.25):
        (conf / "init" / "eyes.yaml").write_text(MORE["init/eyes.yaml"].replace("0.5", str(size)))
        assert Configurations(conf).composed(["init=eyes"]).init.size == size


FOREIGN = {
    "os.system": "must name something inside deeplin",
    "test_extending.eyes": "must name something inside deeplin",
    "deeplin.runner.provenance.subprocess.run": "must name something inside deeplin",
    "deeplin.runner.cli.os.remove": "must name something inside deeplin",
    "torch.optim.Optimizer.mro": "must name something inside deeplin",
    "torch.optim.swa_utils.update_bn": "must name something inside deeplin",
    "deeplin.runner.folder.nothing": "does not exist",
}


@pytest.mark.parametrize("deep", [False, True])
def test_a_stored_configuration_names_nothing_outside(conf, deep, capsys):
    assert train(conf, *SMALL, "method.t1=0.1") == 0
    stored = conf.parent / "run" / "config.yaml"
    text = stored.read_text()
    old = "deeplin.integrators.RK4" if deep else "deeplin.problems.data.gaussian"
    assert old in text
    (conf.parent / "run" / "summary.json").unlink()
    for target, told in FOREIGN.items():
        stored.write_text(text.replace(old, target))
        cfg = OmegaConf.load(stored)
        cfg.pop("format")
        with pytest.raises(ValueError, match=told) as refused:
            run(cfg, conf.parent / "another")
        assert "\n" not in str(refused.value)
    capsys.readouterr()
    assert train(conf, "resume=run", "method.t1=0.2") == 2
    assert "its SHA-256 digest differs" in capsys.readouterr().err
