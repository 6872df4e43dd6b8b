"""Options: one schema for files, the command line, resume and Python; every fault in a sentence."""

import pytest
from answers import CONF, answered, faults, only_built
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from runner import SMALL, Remembered, train

from deeplin.runner import cli
from deeplin.runner.build import build
from deeplin.runner.errors import sentence
from deeplin.runner.run import run
from deeplin.runner.schema import OPTIONS, check

# What was accepted, a traceback, or silence, and what is said now. Words stand one a line.
REFUSED = {
    # ranges and kinds
    "threads=0": "threads must be an integer from 1 to 1024 or null; got 0.",
    "threads=-1": "threads must be an integer from 1 to 1024 or null; got -1.",
    "threads='1'": "threads must be an integer from 1 to 1024 or null; got '1'.",
    "threads=1000000000": "threads must be an integer from 1 to 1024 or null; got 1000000000.",
    "stop.max_steps=1.5": "stop.max_steps must be an integer >= 1 or null; got 1.5.",
    "stop.grad_norm=inf": "stop.grad_norm must be a number >= 0 or null; got inf.",
    "stop.stagnation=0": "stop.stagnation must be a positive number or null; got 0.",
    "init.tied=nan": "init.tied must be true, false or auto; got nan.",
    "init.tied={a:1}": "init.tied must be true, false or auto; got {a: 1}.",
    "device=null": "device must be the name of a device, such as cpu or cuda; got null.",
    "device=meta": "device must be one that torch has here",
    "device=hpu": "device must be one that torch has here",
    "method.t1=true": "method.t1 must be a positive number, 20/rho or auto; got true.",
    "method.dt=true": "method.dt must be a positive number or auto; got true.",
    "method.dt='0.1'": "method.dt must be a positive number or auto; got '0.1'.",
    "init.rank=true": "init.rank must be an integer >= 1 or null; got true.",
    "init.rank=1.5": "init.rank must be an integer >= 1 or null; got 1.5.",
    "init.scale=null": "init.scale must be a positive number; got null.",
    "init.scale=inf": "init.scale must be a positive number; got inf.",
    "init=gaussian\ninit.std=true": "init.std must be a positive number, a list of them, fan_max",
    "init=balanced\ninit.path=1": "init.path must be a path or null; got 1.",
    "problem.m=1.5": "problem.m must be an integer >= 1 or null; got 1.5.",
    "problem=approximation\nproblem.spectrum=1\n~problem.d": "there is no problem.d",
    "network.depth=100000": "network.depth must be an integer from 2 to 1000; got 100000.",
    "log.checkpoint_seconds=nan": "log.checkpoint_seconds must be a number >= 0; got nan.",
    # sizes
    "method.dt=1e-320": "in steps of 1e-320 has more of them than can be counted",
    "method.safety=1e-320": "has more of them than can be counted: take a larger method.dt",
    "repeats=1000000000": "a run of 1000000000 networks of 3 layers needs 1.28 TiB of memory; the",
    "problem.d=1000000000": "needs 2.91e+07 TiB of memory; the machine has",
    # names
    "~method.dt": "a run needs every option, so none can be taken away; got '~method.dt'",
    "~flow": "a run needs every option, so none can be taken away; got '~flow'",
    "~problem": "a run has one of each group, chosen with problem=<name>; got '~problem'.",
    "+problem=teacher": "a run has one of each group, chosen with problem=<name>",
    "problem=null": "there is no problem=null",
    "stop=null": "stop stands for several options, stop.grad_norm, stop.stagnation,",
    "+threads=3": "threads is there already: leave out the + of +threads=3.",
    "++hydra.mode=RUN": "hydra.mode is there already: leave out the ++ of ++hydra.mode=RUN.",
    "+new=1": "there is no new; the nearest valid names are network.",
    "+stop.x=1": "there is no stop.x; the nearest valid names are stop.max_steps.",
    "+init.foo=1": "there is no init.foo; options of deeplin.runner.starts.orthogonal are scale,",
    "+init.net=1": "init.net is the run's to give, no option: leave it out.",
    "+method.optimizer.lr=1\nmethod=sgd": "the learning rate of an optimizer is method.dt",
    "+method.optimizer.foo=1\nmethod=sgd": "there is no method.optimizer.foo; options of torch.",
    "+method.optimizer.momentum=a\nmethod=sgd": "method.optimizer.momentum must be a number",
    # syntax
    "": "an option must look like key=value; got ''.",
    "problem.path=données.npz": "stands in quotes, 'problem.path=\"données.npz\"'; got",
    "problem.path=a=b.npz": "stands in quotes, 'problem.path=\"a=b.npz\"'; got 'problem.path=a=b",
    "problem.path=~/x.npz": "with $HOME instead of ~ and the value in quotes, \"problem.path='",
    "hydra.run.dir=a,b": "one with commas in quotes, 'hydra.run.dir=\"a,b\"'; got",
    "seed=1,2": "several values of seed make a sweep, which -m runs; one value with commas stands",
    "init.scale=${": "stands in quotes, 'init.scale=\"${\"'; got 'init.scale=${'.",
    f"seed={'9' * 5000}": "an option must look like key=value",
    # references
    "hydra.run.dir=${nope}": "hydra.run.dir refers to ${nope}, but there is no option nope.",
    "init.scale=${init.scale}": "init.scale refers to something that has no value here",
    "network.rank=${problem.n}": "network.rank refers to ${problem.n}, but there is no option",
    "seed=${nope:1}": "seed refers to ${nope:…}, but there is no function nope.",
    "init.rank=${init.scale}": "init.rank must be an integer >= 1 or null; got 1.0.",
    # sweeps
    "-m\nseed=range(0)": "a sweep needs at least one value of seed, and 'seed=range(0)' has none.",
    "-m\nseed=interval(0,1)": "values that can be listed, such as seed=range(0,3) or 0,1,2; got",
    "-m\nseed=glob(*)": "glob() chooses among the names of a group, and seed is none; got",
    "-m\nseed=range(1000000)": "a sweep can have 100000 runs at most; this one has more.",
    "-m\nnetwork.depth=2,1": "network.depth must be an integer from 2 to 1000; got 1.",
    "-m\nmethod=rk4,rgd\nmethod.safety=0.1": "there is no method.safety; the nearest valid",
    "-m\nhydra.mode=RUN": "-m makes a sweep, hydra.mode=RUN one run: leave one of them out.",
    # Hydra's own
    "hydra.run.dir=null": "hydra.run.dir must be a path; got null.",
    "hydra.mode=foo": "hydra.mode must be RUN, MULTIRUN or null; got 'foo'.",
    "hydra.job.chdir=3": "hydra.job.chdir must be true, false or null; got 3.",
    "hydra.callbacks={a:1}": "there is no option hydra.callbacks",
    "hydra/launcher=nope": "there is no hydra/launcher=nope; the nearest valid names are",
    "hydra.run.dir=/proc/x": "outputs go to /proc/x, which is no folder that can be written (",
    "--nope": "there is no flag --nope; options are set with key=value, and --help lists them.",
    "--resolve": "--resolve goes with --cfg: for instance --cfg job --resolve.",
    "--package\nx": "--package goes with --cfg",
    "--cfg\njob\n--package\nx": "--package=x is no part of the configuration.",
    "--cfg\nx": "argument --cfg/-c: invalid choice: 'x' (choose from 'job', 'hydra', 'all')",
    "--cfg\njob\n-m": "only one of --multirun and --cfg can be asked for at a time.",
    "-cn\nx": "there is no configuration x in",
    "-cd\nx": "--config-dir must name a folder of configurations; there is no",
    "-cp\nx": "--config-path is not used here: --config-dir=<folder> adds a folder.",
    "--experimental-rerun\nx": "--experimental-rerun is not used here: resume=<folder> continues",
    "--shell-completion": "--shell-completion needs install=<shell> or uninstall=<shell>.",
}
# What was refused, or failed, and is right.
TAKEN = [
    *(
        "threads=null",
        "experiment=null",
        "~experiment",
        "network.rank=${problem.d}",
        "device='cpu'",
    ),
    *("-m\ninit=glob(o*)", "-m\nseed=range(2)", "+k=3\nnetwork.rank=${k}", "hydra.verbose=[a]"),
    *(
        "hydra.run.dir='a,b é'",
        "method=sgd\n+method.optimizer.momentum=0.5",
        "--run",
        "seed=int(3.0)",
    ),
]


@pytest.fixture
def words_answered(tmp_path, monkeypatch):
    """What is said to some words after those of a small run, which is built alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "Configurations", Remembered)
    entry = only_built(tmp_path, monkeypatch)
    return lambda words: answered(entry, [*SMALL, *words.split("\n")])


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: words[:30].replace("\n", " "))
def test_refused_in_one_sentence(words, words_answered):
    status, out, err = words_answered(words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert REFUSED[words] in err
    assert not faults(status, err)


@pytest.mark.parametrize("words", TAKEN)
def test_taken(words, words_answered):
    status, _, err = words_answered(words)
    assert (status, err) == (0, "")


def test_kinds_of_other_groups(words_answered):
    """Of files that the small run does not choose."""
    for words, told in {
        "problem=approximation\nproblem.spectrum=1": "problem.spectrum must be a list of finite",
        "problem=approximation\ninit=spurious\ninit.keep=1": "init.keep must be a list of positive",
        "problem=approximation\ninit=spurious\ninit.radius=inf": "init.radius must be a positive",
        "problem=teacher\nproblem.depth=1000000000": "problem.depth must be an integer from 2 to",
    }.items():
        base = [word for word in SMALL if not word.startswith("problem")]
        status, _, err = answered(None, [*base, *words.split("\n")])
        assert (status, told in err) == (2, True), err


def small(**changes):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("train", SMALL)


@pytest.mark.parametrize("key", ["threads", "log.factors", "stop", "flow", "method.t1", "problem"])
def test_a_key_that_is_missing_is_named(key, tmp_path):
    """In a configuration of another version, or one made in Python."""
    cfg = small()
    with open_dict(cfg):
        *path, last = key.split(".")
        del (cfg[path[0]] if path else cfg)[last]
    with pytest.raises(ValueError, match=f"the configuration has no {key}"):
        run(cfg, tmp_path / "run")
    with pytest.raises(ValueError, match=f"the configuration has no {key}"):
        build(cfg)


def test_a_stored_run_without_a_key_is_refused_in_a_sentence(tmp_path, capsys):
    assert train(*SMALL, "stop.max_steps=2", folder=tmp_path) == 0
    stored = tmp_path / "config.yaml"
    stored.write_text(stored.read_text().replace("threads: 1\n", ""))
    capsys.readouterr()
    assert train(f"resume={tmp_path}", "stop.max_steps=5") == 2
    err = capsys.readouterr().err
    assert "its SHA-256 digest differs" in err
    assert not faults(2, err)


def test_a_file_is_held_to_the_same_schema():
    for key, value in {"stop.max_stepps": 3, "log.records": "many", "network.rank": True}.items():
        cfg = small()
        OmegaConf.update(cfg, key, value, force_add=True)
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            check(cfg)


def test_every_option_says_what_it_must_be():
    for key, option in OPTIONS.items():
        assert option.help, key
        assert option.kind.must, key
        assert not option.kind.holds(object())


def test_a_pipe_of_flags(tmp_path, monkeypatch, capsys):
    """What Hydra shows, it shows."""
    monkeypatch.chdir(tmp_path)
    assert train(*SMALL, "--cfg", "job", "--package", "problem") == 0
    assert "_target_: deeplin.problems.data.gaussian" in capsys.readouterr().out
    assert train("--info", "searchpath", *SMALL) == 0
    assert "Config search path" in capsys.readouterr().out
    assert train("--hydra-help", *SMALL) == 0
    assert train("--version") == 0


def test_a_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "more" / "init").mkdir(parents=True)
    file = tmp_path / "more" / "init" / "mine.yaml"
    file.write_text("name: mine\n_target_: deeplin.network.init.identity_\nscale: 0.5\n")
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, "--config-dir", "more", "init=mine"]
    assert train(*words, "init.size=3") == 2
    assert "there is no init.size" in capsys.readouterr().err
    assert train(*words, "stop.max_steps=2") == 0
    assert "mine start" in capsys.readouterr().out


def test_out_of_memory_is_a_sentence():
    told = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes. Error 12"
    assert sentence(RuntimeError(told)).startswith("there is not enough memory for a matrix of 800")
    assert sentence(MemoryError()).startswith("there is not enough memory for a matrix: take")
    assert sentence(FileNotFoundError(2, "No such file", "a/b")) == "a/b: no such file."
