"""A family that cannot be optimized is refused before anything is trained on it: with the cause and the remedy."""

import dataclasses
import functools
import hashlib
import inspect
import json
import random
import runpy
import sys
import types
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import (
    FAMILIES,
    HeldOut,
    Mixture,
    ProblemFamily,
    Quadratic,
    check_family,
    describe_family,
    find_family,
)
from bygrad.problems.base import check_is_family, digest_family

pytestmark = pytest.mark.core


class Bowl(ProblemFamily):
    """A family in order; the bad ones spoil one method each."""

    def sample(self, key: jax.Array) -> Any:
        return jax.random.uniform(key, minval=1.0, maxval=2.0)

    def init(self, instance: Any, key: jax.Array) -> Any:
        return {"p": jax.random.normal(key, (3,))}

    def loss(self, params: Any, instance: Any, key: jax.Array | None) -> Any:
        return instance * jnp.sum(params["p"] ** 2)


class Drawn(Bowl):
    """Data in NumPy's arrays, of which the key draws a part."""

    data: np.ndarray = eqx.field(default_factory=lambda: np.arange(8.0))

    def loss(self, params: Any, instance: Any, key: jax.Array | None) -> Any:
        chosen = self.data[jax.random.randint(key, (4,), 0, 8)]
        return jnp.mean((jnp.sum(params["p"]) - chosen) ** 2)


def test_data_may_be_numpys_where_a_key_draws_of_them():
    assert check_family(Drawn(), jax.random.key(0))["p"].shape == (3,)


class VectorLoss(Bowl):
    def loss(self, params, instance, key):
        return params["p"] ** 2


class TwoLosses(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(params["p"]), instance


class ComplexLoss(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(params["p"]) * 1j


class IntegerLoss(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(params["p"] > 0)


class IntegerParams(Bowl):
    def init(self, instance, key):
        return {"p": jnp.zeros(3), "steps": jnp.zeros((), jnp.int32)}


class ComplexParams(Bowl):
    def init(self, instance, key):
        return {"p": jnp.zeros(3, jnp.complex64)}


class PythonParams(Bowl):
    def init(self, instance, key):
        return {"p": 1.0}


class WholeModel(Bowl):
    def init(self, instance, key):
        return eqx.nn.MLP(1, 1, 2, 1, key=key)


class ArraysOfModel(ProblemFamily):
    """The remedy for the family above."""

    model: eqx.nn.MLP = eqx.field(default_factory=lambda: eqx.nn.MLP(1, 1, 2, 1, key=jax.random.key(0)))

    def sample(self, key: jax.Array) -> Any:
        return ()

    def init(self, instance: Any, key: jax.Array) -> Any:
        return eqx.filter(eqx.nn.MLP(1, 1, 2, 1, key=key), eqx.is_inexact_array)

    def loss(self, params: Any, instance: Any, key: jax.Array | None) -> Any:
        return (eqx.combine(params, self.model)(jnp.ones(1))[0] - 1) ** 2


class NoParams(Bowl):
    def init(self, instance, key):
        return {}


class NanAtStart(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(jnp.log(-jnp.abs(params["p"])))


class InfinityAtStart(Bowl):
    def loss(self, params, instance, key):
        return 1 / jnp.sum(0 * params["p"] ** 2)


class RootAtZero(Bowl):
    def init(self, instance, key):
        return {"p": jnp.zeros(3)}

    def loss(self, params, instance, key):
        return jnp.sqrt(jnp.sum(params["p"] ** 2))


class Rounded(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(jnp.round(params["p"]) ** 2)


class Constant(Bowl):
    def loss(self, params, instance, key):
        return instance


class Stationary(Bowl):
    def init(self, instance, key):
        return {"p": jnp.zeros(3)}


class RaisingSample(Bowl):
    def sample(self, key):
        raise RuntimeError("no measurements")


class RaisingInit(Bowl):
    def init(self, instance, key):
        raise KeyError("weights")


class RaisingLoss(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(params["p"] @ jnp.ones(4))


class SilentLoss(Bowl):
    def loss(self, params, instance, key):
        raise AssertionError


class Branching(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(params["p"]) if params["p"][0] > 0 else jnp.sum(params["p"] ** 2)


class BranchingInit(Bowl):
    def init(self, instance, key):
        return {"p": jnp.ones(3) if instance > 0 else jnp.zeros(3)}


class CountingInit(Bowl):
    def sample(self, key):
        return jax.random.randint(key, (), 1, 5)

    def init(self, instance, key):
        return {"p": jnp.ones(instance)}


class NamedInstance(Bowl):
    def sample(self, key):
        return {"name": "deep", "width": jnp.ones(())}


class DrawingSample(Bowl):
    def sample(self, key):
        return np.random.uniform(1.0, 2.0)


class DrawingInit(Bowl):
    def init(self, instance, key):
        return {"p": jnp.asarray(np.random.standard_normal(3), jnp.float32)}


class DrawingLoss(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(params["p"][np.random.randint(0, 3, 2)] ** 2)


class FreshSample(Bowl):
    def sample(self, key):
        return jnp.asarray(np.random.default_rng().uniform(1.0, 2.0, 3), jnp.float32)


class FreshNumber(Bowl):
    def sample(self, key):
        return np.random.default_rng().uniform(1.0, 2.0)


class PythonLoss(Bowl):
    def loss(self, params, instance, key):
        return jnp.sum(params["p"] ** 2) * random.gauss(1.0, 0.1)


class Holding(Bowl):
    """Arrays that are made again for each trace, of which some are NaN, and a key."""

    def loss(self, params, instance, key):
        noise = jax.random.normal(jax.random.key(0), (3,))
        weights = jnp.asarray(np.array([1.0, 2.0, np.nan]))
        return jnp.sum(params["p"] ** 2 * jnp.nan_to_num(weights)) + jnp.sum(noise)


class SeededLoss(Bowl):
    def loss(self, params, instance, key):
        np.random.seed(0)
        return jnp.sum((params["p"] - np.random.standard_normal(3)) ** 2)


@dataclasses.dataclass
class Settings:
    power: int = 2


class Unfrozen(Bowl):
    settings: Any = eqx.field(default_factory=lambda: {"of": Settings()})

    def loss(self, params, instance, key):
        return jnp.sum(params["p"] ** self.settings["of"].power)


REFUSED = [
    (VectorLoss, TypeError, r"float32\[3\]", "jnp.mean or jnp.sum"),
    (TwoLosses, TypeError, r"float32\[\], float32\[\]", "return nothing else"),
    (ComplexLoss, TypeError, "complex64", "real floating-point scalar"),
    (IntegerLoss, TypeError, "int32", "real floating-point scalar"),
    (IntegerParams, TypeError, r"int32 at params\['steps'\]", "make it a field of the family"),
    (ComplexParams, TypeError, r"complex64 at params\['p'\]", "Convert it"),
    (PythonParams, TypeError, r"float at params\['p'\]", "Convert it"),
    (WholeModel, TypeError, r"custom_jvp at params\['activation'\]", "eqx.filter(model, eqx.is_inexact_array)"),
    (NoParams, TypeError, "without arrays", "Return the params"),
    (NanAtStart, ValueError, "loss is nan at the start", "guard divisions, roots and logarithms"),
    (InfinityAtStart, ValueError, "loss is inf at the start", "guard divisions, roots and logarithms"),
    (RootAtZero, ValueError, r"params\['p'\] is not finite at the start although the loss is 0", "Guard roots"),
    (Rounded, ValueError, "exactly zero", "not differentiable in its params"),
    (Constant, ValueError, "exactly zero", "not differentiable in its params"),
    (Stationary, ValueError, "exactly zero", "starts at a stationary point"),
    (RaisingSample, ValueError, "RaisingSample.sample raised RuntimeError: no measurements", "mend this one"),
    (RaisingInit, ValueError, "RaisingInit.init raised KeyError: 'weights'", "mend this one"),
    (RaisingLoss, ValueError, "RaisingLoss.loss raised TypeError", "mend this one"),
    (SilentLoss, ValueError, "SilentLoss.loss raised AssertionError", "mend this one"),
    (Branching, ValueError, "Branching.loss raised TracerBoolConversionError", "no Python branches on values"),
    (BranchingInit, ValueError, "BranchingInit.init raised TracerBoolConversionError", "no Python branches on values"),
    (CountingInit, ValueError, "CountingInit.init raised TypeError: Shapes must be 1D", "mend this one"),
    (NamedInstance, TypeError, r"NamedInstance.sample returned str at instance\['name'\]", "a field of the family"),
    (Unfrozen, TypeError, "Unfrozen.settings/of is a Settings, which has no hash", "frozen=True"),
    (DrawingSample, ValueError, "DrawingSample.sample draws from a generator of NumPy", "Draw from the key"),
    (DrawingInit, ValueError, "DrawingInit.init draws from a generator of NumPy", "Draw from the key"),
    (DrawingLoss, ValueError, "DrawingLoss.loss draws from a generator of NumPy", "Draw from the key"),
    (FreshSample, ValueError, "FreshSample.sample draws from a generator of NumPy", "Draw from the key"),
    (FreshNumber, ValueError, "FreshNumber.sample draws from a generator of NumPy", "Draw from the key"),
    (PythonLoss, ValueError, "PythonLoss.loss draws from a generator of NumPy or Python", "Draw from the key"),
]


@pytest.mark.parametrize(("kind", "error", "cause", "remedy"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_refusal(kind, error, cause, remedy):
    with pytest.raises(error, match=cause) as caught:
        check_family(kind(), jax.random.key(0))
    assert kind.__name__ in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("method", [RaisingLoss.loss, SilentLoss.loss, Branching.loss, BranchingInit.init])
def test_what_a_family_raises_is_told_with_its_line(method):
    """For those who see no traceback: the command prints none."""
    kind, line = globals()[method.__qualname__.split(".")[0]], inspect.getsourcelines(method)[1] + 1
    with pytest.raises(ValueError, match=rf"raised \w+Error(: .+)? \(test_check\.py, line {line}\)\. A family"):
        check_family(kind(), jax.random.key(0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Bowl, r"You gave the class Bowl, .* Give Bowl\(\)"),
        (print, "builtin_function_or_method is not a ProblemFamily"),
    ],
)
def test_what_is_no_family_is_refused(given, says):
    with pytest.raises(TypeError, match=says):
        check_is_family(given)


# The same families at other sizes and with other labels: they take long to compile.
SLOW = (
    *("style", "style-32", "style-128-new", "mnist-40-units", "mnist-2-layers", "mnist-2-layers-wide"),
    *("digits-sigmoid", "portfolio"),
    *(name for name in FAMILIES if name.startswith("cifar") and name != "cifar10"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES]
)
def test_every_family_of_the_package_passes(name, patches_file):
    data = str(patches_file) if name.startswith("cifar") else "mnist"
    family = find_family(name, data=data)
    params = check_family(family, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(
        family.init(family.sample(jax.random.key(1)), jax.random.key(2))
    )


def test_the_arrays_of_an_equinox_model_pass_and_count():
    family = ArraysOfModel()
    params = check_family(family, jax.random.key(0))
    own, fixed = eqx.filter(family.model, eqx.is_inexact_array), family.loss(params, (), None)
    assert jax.tree.structure(params) == jax.tree.structure(own)
    assert family.loss(own, (), None) != fixed  # it is the params that the loss is of, not the field


def test_numbers_are_instances_and_what_numpy_draws_the_same_each_time_is_no_draw():
    class Numbered(SeededLoss):
        def sample(self, key):
            return {"of": 3, "none": None, "key": key}

    check_family(Numbered(), jax.random.key(0))
    check_family(Holding(), jax.random.key(0))


def test_params_of_any_floating_dtype_pass():
    class Half(Bowl):
        def init(self, instance, key):
            return {"p": jnp.ones(3, jnp.bfloat16)}

        def loss(self, params, instance, key):
            return jnp.sum(params["p"].astype(jnp.float32) ** 2)

    assert check_family(Half(), jax.random.key(0))["p"].dtype == jnp.bfloat16


def test_a_description_is_json_and_tells_families_apart():
    class Measured(Bowl):
        data: jax.Array
        rate: float = 0.5
        parts: dict[str, jax.Array] | None = None

    assert describe_family(Quadratic(3)) == {
        "name": "Quadratic",
        "dimension": 3,
        "distribution": "uniform",
        "scale": 0.01,
    }
    assert describe_family(Measured(np.zeros((2, 3), np.uint8))) == {
        "name": "Measured",
        "data": "uint8[2, 3]",
        "rate": 0.5,
        "parts": None,
    }

    class Network(Bowl):
        activation: Callable[..., jax.Array] = eqx.field(static=True)
        layer: eqx.nn.Linear | None = None

    functions = jax.nn.relu, jnp.tanh, functools.partial(jax.nn.gelu, approximate=False), Quadratic(2).loss
    said = [describe_family(Network(it, eqx.nn.Linear(2, 1, key=jax.random.key(0)))) for it in functions]
    assert "0x" not in json.dumps(said) and len({it["activation"] for it in said}) == 4
    assert [it["activation"].rpartition(".")[2] for it in said[:2]] == ["relu", "tanh"]
    # Entries of arrays may differ in their last digits from machine to machine.
    several = [describe_family(Measured(np.zeros(1), parts={"a": np.full(2, entry)})) for entry in (0.1, 0.2)]
    assert several[0] == several[1]
    assert several[0]["parts"] == "{'a': 'float64[2]'}"


def test_a_digest_tells_what_is_written_and_what_is_in_arrays(tmp_path):
    class Measured(Bowl):
        data: jax.Array

    one, same, other = (digest_family(Measured(np.full(2, entry))) for entry in (0.1, 0.1, 0.2))
    assert one == same != other
    assert len({digest_family(Measured(jax.random.key(seed))) for seed in range(2)}) == 2

    def written(factor: float, wrap: Callable[[Any], ProblemFamily]) -> str:
        text = f"import numpy as np\ndef bowl(params, seed):\n    return {factor} * np.sum(params**2), params\n"
        (tmp_path / "mine.py").write_text(f"{text}import bygrad\nit = bygrad.Oracle(bowl, np.ones(2))\n")
        return digest_family(wrap(find_family(f"{tmp_path / 'mine.py'}:it")))

    for wrap in (lambda it: it, HeldOut, lambda it: Mixture((Quadratic(2), it))):
        assert written(1.0, wrap) == written(1.0, wrap) != written(2.0, wrap)


def test_a_digest_of_a_script_leaves_out_what_is_not_the_family(tmp_path, monkeypatch):
    def digest(name: str, factor: float, more: str = "", typed: bool = False) -> str:
        (tmp_path / name).write_text(f"""
class Own(Bowl):
    def loss(self, params, instance, key):
        return {factor} * super().loss(params, instance, key)
{more}""")
        own = runpy.run_path(str(tmp_path / name), {"Bowl": Bowl}, "__main__")["Own"]
        script = types.ModuleType("__main__")
        if not typed:
            script.__file__ = str(tmp_path / name)
        monkeypatch.setitem(sys.modules, "__main__", script)
        return digest_family(own())

    assert digest("a.py", 1.0) == digest("b.py", 1.0, "resume = True") != digest("c.py", 2.0)
    assert digest("d.py", 1.0, typed=True) == hashlib.sha256().hexdigest()  # into a notebook: it is in no file
