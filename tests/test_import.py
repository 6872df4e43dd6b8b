"""What `import deeplin` loads, and that names of modules and of functions do not meet."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import deeplin

HEAVY = ["geoopt", "scipy", "sklearn", "matplotlib", "tensorboard", "hydra", "omegaconf"]
HEAVY += ["tqdm", "pandas", "joblib"]
PACKAGES = ["deeplin"] + [
    module.name for module in pkgutil.walk_packages(deeplin.__path__, "deeplin.") if module.ispkg
]


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_command_answers_before_torch_is_loaded():
    code = (
        "import sys, deeplin.runner.entry, deeplin.runner.signals\n"
        f"print(*[m for m in {[*HEAVY, 'torch', 'numpy']} if m in sys.modules], 'then')\n"
        "import deeplin; deeplin.solve, deeplin.init; print('torch' in sys.modules)"
    )
    assert in_a_fresh_process(code) == ["then", "True"]


def test_importing_the_package_loads_nothing_of_weight():
    """Nor does an attribute that exists only later.

    `deeplin.manifolds` brings geoopt, and `deeplin.load` the runner, but no scikit-learn.
    """
    code = (
        f"import sys, torch; heavy = {set(HEAVY)} - set(sys.modules)\nimport deeplin\n"
        "print(*[m for m in heavy if m in sys.modules], 'then')\n"
        "assert not hasattr(deeplin, 'nothing') and 'manifolds' in dir(deeplin)\n"
        "deeplin.manifolds.FixedRank\n"
        "print('geoopt' in sys.modules, deeplin.manifolds is sys.modules['deeplin.manifolds'])\n"
        "assert 'deeplin.runner' not in sys.modules\n"
        "deeplin.load; print('deeplin.runner' in sys.modules, 'sklearn' in sys.modules)"
    )
    assert in_a_fresh_process(code) == ["then", "True", "True", "True", "False"]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_bears_the_name_of_a_public_function(package):
    """So that `import package.name as x` is what `from package import name` is."""
    house = importlib.import_module(package)
    modules = {module.name for module in pkgutil.iter_modules(house.__path__)}
    for name in modules & set(vars(house)):
        assert inspect.ismodule(vars(house)[name]), f"{package}.{name} is a module and is not"


def test_everything_promised_is_there():
    for name in deeplin.__all__:
        assert getattr(deeplin, name) is not None
    import deeplin.loop as loop

    assert loop.solve is deeplin.solve
    assert inspect.isfunction(deeplin.solve)
