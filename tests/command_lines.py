"""Command lines drawn from the schema of options: right and wrong values, groups, flags, quotes."""

import re

from hypothesis import strategies as st
from runner import ROOT

from deeplin.runner.configurations import Configurations, visible
from deeplin.runner.schema import OF_HYDRA, OPTIONS

WORDS = sorted({w for o in OPTIONS.values() for w in re.findall(r"[a-z]\w+", o.kind.must)})
# As they are typed; what they are read as decides, for each option, whether they are right.
VALUES = {
    **{str(i): i for i in (-1, 0, 1, 2, 3, 5, 8, 2**31 - 1, 2**31, 10**12, 10**30)},
    **{text: float(text) for text in ("0.5", "1.5", "-0.1", "1e-320", "1e-3", "1e300", "1e9")},
    **{text: float(text) for text in ("nan", "inf", "-inf")},
    **{word: word for word in WORDS},
    **{"null": None, "true": True, "false": False, "''": "", '"1"': "1", "'0.1'": "0.1"},
    **{"20/rho": "20/rho", "0.5/rho": "0.5/rho", "0/rho": "0/rho", "1/tau": "1/tau"},
    **{"[]": [], "[1]": [1], "[1,2]": [1, 2], "[6,2,6]": [6, 2, 6], "[2,a]": [2, "a"]},
    **{"[0.5,1]": [0.5, 1], "[3.0,2.0]": [3.0, 2.0], "[[1,0],[0,2]]": [[1, 0], [0, 2]]},
    **{"[[1],[2,3]]": [[1], [2, 3]], "{a:1}": {"a": 1}, "{}": {}, "{a:{b:[1]}}": {"a": {"b": [1]}}},
    **{"cpu": "cpu", "meta": "meta", "nowhere.npz": "nowhere.npz", "'a b/c'": "a b/c"},
}
RAW = [
    *("${seed}", "${problem.d}", "${nope}", "${", "${network.rank}", "${oc.env:NOPE}", "${now:%Y}"),
    *("données.npz", "~/x.npz", "a=b.npz", "a,b.npz", "a b", "[1", "{a", "'a", "1,2", "range(0)"),
    *(
        "range(2)",
        "interval(0,1)",
        "glob(*)",
        "choice(1,2)",
        "choice()",
        "sort(2,1)",
        "int(x)",
        "$",
    ),
    *("a:b", "\\", '"', "()", "{_target_:os.system}", "9" * 5000, "🙂", "a\tb", "#", "%", "@", "!"),
]
FLAGS = [
    *(
        ["-m"],
        ["--multirun"],
        ["-h"],
        ["--help"],
        ["--cfg", "job"],
        ["--cfg=hydra"],
        ["--cfg", "x"],
    ),
    *(["--resolve"], ["--cfg", "job", "--resolve"], ["--package", "problem"], ["-c", "all"]),
    *(["--cfg", "job", "-p", "nope"], ["-cn", "nope"], ["--config-name=train"], ["-cd", "nope"]),
    *(
        ["--config-dir=."],
        ["-cp", "x"],
        ["--info", "config"],
        ["--info", "nope"],
        ["-i"],
        ["--run"],
    ),
    *(["--nope"], ["-z"], ["--"], ["--hydra-help"], ["--version"], ["--shell-completion"], ["-sc"]),
    *(["--experimental-rerun", "x"], ["--cfg"], ["--config-name"], ["-m", "--cfg", "job"], ["-"]),
]
KEYS = {
    "problem": "name approximation digits file gaussian teacher",
    "init": "balanced gaussian identity orthogonal special spurious",
    "method": "auto dopri5 euler rgd rk4 rkc rosenbrock sgd structure",
    "network": "grid nope",
    "experiment": "null nope condition37 plateaus brtw/fig01",
    "hydra/launcher": "basic nope",
    "hydra/job_logging": "stdout disabled nope",
}
STRANGE = [
    "",
    "=",
    "a",
    "=1",
    "a=",
    "network",
    "stop",
    "~seed",
    "~flow",
    "~",
    "+",
    "++",
    "stop.x",
    "x.y.z",
]
ODD_KEYS = [
    "depth",
    "method.x",
    "method.optimizer.momentum",
    "problem._target_",
    "init.name",
    "k",
    "hydra",
]


def right(key: str) -> list[str]:
    """The typed values that an option takes."""
    kind = OPTIONS[key].kind
    return [text for text, value in VALUES.items() if kind.holds(value)] or ["null"]


@st.composite
def settings(draw) -> str:
    """One word: mostly an option with a value, right or not; also groups and what is no option."""
    which = draw(st.integers(0, 19))
    if which < 4:
        key = draw(st.sampled_from(sorted(KEYS)))
        return f"{key}={draw(st.sampled_from(KEYS[key].split()))}"
    if which < 6:
        key, text = draw(st.sampled_from(ODD_KEYS + sorted(OF_HYDRA))), draw(values)
        return f"{draw(st.sampled_from(['', '+', '++']))}{key}={text}"
    if which == 6:
        return draw(st.sampled_from(STRANGE))
    key = draw(st.sampled_from(sorted(OPTIONS)))
    text = draw(st.sampled_from(right(key))) if which < 16 else draw(values)
    return f"{draw(st.sampled_from(['', '', '', '', '', '', '', '+', '++', '~']))}{key}={text}"


values = st.sampled_from([*VALUES, *RAW])
SMALL = ["problem=gaussian", "problem.d=4", "network.rank=2", "method=rk4", "method.dt=0.1"]


OF_SMALL = sorted(visible(Configurations(ROOT / "conf").composed(SMALL)))


@st.composite
def right_settings(draw) -> str:
    """An option that the small run has, with a value that it takes."""
    key = draw(st.sampled_from(OF_SMALL))
    return f"{key}={draw(st.sampled_from(right(key)))}"


@st.composite
def command_lines(draw) -> list[str]:
    """A few words in any order, mostly after those of a small run, at times with a flag."""
    if draw(st.booleans()):
        return [*SMALL, *draw(st.lists(right_settings(), max_size=4))]
    words = draw(st.lists(settings(), max_size=4))
    words = (SMALL if draw(st.integers(0, 15)) else []) + words
    if not draw(st.integers(0, 3)):
        flag = draw(st.sampled_from(FLAGS))
        at = draw(st.integers(0, len(words)))
        words = words[:at] + flag + words[at:]
    return words
