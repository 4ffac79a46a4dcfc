"""The house: which room may import which, what no room may do, and what stays unloaded until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
SOURCE = HOUSE / "src" / "bygrad"

# A room imports only rooms above it in this list; in any room, `_core` is above.
ROOMS = (
    "_core",
    "problems",
    "optimizers",
    "unroll",
    "metagrads",
    "training",
    "solvers",
    "artifacts",
    "deploy",
    "evaluation",
    "workflows",
    "experiments",
    "cli",
)
NETWORK = ("aiohttp", "datasets", "ftplib", "http", "httpx", "huggingface_hub", "requests", "socket", "urllib")
MAY_USE_THE_NETWORK = ("deploy/hub.py", "problems/data/download.py")
UNPICKLES = ("cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "torch.load")
RUNS_TEXT = ("eval", "exec", "builtins.eval", "builtins.exec")
HEAVY = ("jax", "jaxlib", "equinox", "optax", "torch")


def is_within(name: str, roots: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of `roots` or inside one."""
    return any(name == root or name.startswith(root + ".") for root in roots)


class Module:
    """One source file: what it imports, and the full names of what it uses."""

    def __init__(self, path: Path, root: Path) -> None:
        self.place = path.relative_to(root).as_posix()
        self.tree = ast.parse(path.read_text(), filename=str(path))
        self.package = (root.name, *path.relative_to(root).parent.parts)
        self.room = path.relative_to(root).parts[0].removesuffix(".py")
        self.names = dict(self._bindings())

    def imports(self) -> Iterator[tuple[int, str]]:
        """The line and full name of everything imported, by statement or by `import_module("...")`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                yield from ((node.lineno, f"{base}.{alias.name}" if base else alias.name) for alias in node.names)
            elif isinstance(node, ast.Call) and self.full_name(node.func) in ("importlib.import_module", "__import__"):
                match node.args:
                    case [ast.Constant(value=str(name)), *_]:
                        level = len(name) - len(name.lstrip("."))
                        prefix = ".".join(self._parent(level)) + "." if level else ""
                        yield node.lineno, prefix + name.lstrip(".")

    def full_name(self, node: ast.expr) -> str:
        """`jnp.linalg.norm` as `jax.numpy.linalg.norm`; empty for what is no dotted name."""
        match node:
            case ast.Name(id=name):
                return self.names.get(name, name)
            case ast.Attribute(value=value, attr=name):
                base = self.full_name(value)
                return f"{base}.{name}" if base else ""
        return ""

    def _bindings(self) -> Iterator[tuple[str, str]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.split(".")[0]
                    yield (alias.asname, alias.name) if alias.asname else (top, top)
            elif isinstance(node, ast.ImportFrom):
                yield from ((alias.asname or alias.name, f"{self._base(node)}.{alias.name}") for alias in node.names)

    def _base(self, node: ast.ImportFrom) -> str:
        return ".".join((*(self._parent(node.level) if node.level else ()), *([node.module] if node.module else [])))

    def _parent(self, level: int) -> tuple[str, ...]:
        return self.package[: len(self.package) - level + 1]


def violations(root: Path) -> list[str]:
    """Every breach of the rules of the house under `root`, the folder of the package, as `file:line: sentence`."""
    modules = [Module(path, root) for path in sorted(root.rglob("*.py"))]
    found, edges = [], set()
    for module in modules:
        found += [f"{module.place}:{line}: {text}" for line, text in _forbidden_uses(module)]
        if module.place in ("__init__.py", "__main__.py"):  # the root is no room: it loads rooms when they are used
            continue
        if module.room not in ROOMS:
            found.append(f"{module.place}:1: {module.room} is not a room")
            continue
        for line, name in module.imports():
            if name.split(".")[0] == root.name:
                other = name.split(".")[1] if "." in name else ""
                if complaint := _wrong_direction(module.room, other):
                    found.append(f"{module.place}:{line}: {complaint}")
                edges.add((module.room, other))
            elif module.room == "artifacts" and is_within(name, HEAVY):
                found.append(f"{module.place}:{line}: artifacts imports {name}, so it could not be read without it")
    mutual = sorted((one, other) for one, other in edges if one < other and (other, one) in edges)
    return found + [f"{one} and {other} import each other" for one, other in mutual]


def _wrong_direction(room: str, other: str) -> str:
    if other not in ROOMS:
        return "" if room == "cli" else f"{room} imports the root of the package: import from the room itself"
    return "" if ROOMS.index(other) <= ROOMS.index(room) else f"{room} imports {other}, which is below it"


def _forbidden_uses(module: Module) -> Iterator[tuple[int, str]]:
    for line, name in module.imports():
        if is_within(name, NETWORK) and module.place not in MAY_USE_THE_NETWORK:
            yield line, f"imports {name}, but only {', '.join(MAY_USE_THE_NETWORK)} may use the network"
        if is_within(name, UNPICKLES):
            yield line, f"imports {name}, which runs code from a file"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            name = module.full_name(node.func)
            if name in RUNS_TEXT:
                yield node.lineno, f"calls {name}, which runs text as code"
            if is_within(name, UNPICKLES):
                yield node.lineno, f"calls {name}, which runs code from a file"
            if name == "jax.config.update":
                yield node.lineno, "calls jax.config.update, which changes the user's program"
            if name in ("jax.random.key", "jax.random.PRNGKey") and not any(it.arg == "impl" for it in node.keywords):
                yield node.lineno, f"calls {name}, whose kind of keys the user chooses: _core.draws.key_of does not"
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not allowed:
                    yield node.lineno, "allows pickle, which runs code from a file"
        match node:
            case ast.Attribute(ctx=ast.Store()) if is_within(module.full_name(node), ("jax.config",)):
                yield node.lineno, "sets jax.config, which changes the user's program"


def test_the_house_is_in_order() -> None:
    assert SOURCE.is_dir()
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("place", "text", "complaint"),
    [
        ("problems/a.py", "from bygrad.optimizers import Adam", "problems imports optimizers, which is below it"),
        ("problems/a.py", "import bygrad.training.loop", "problems imports training, which is below it"),
        ("problems/deep/a.py", "from ...optimizers import Adam", "problems imports optimizers, which is below it"),
        ("problems/a.py", "from .. import optimizers", "problems imports optimizers, which is below it"),
        ("problems/__init__.py", "from ..unroll import rollout", "problems imports unroll, which is below it"),
        ("problems/a.py", "def f():\n    import bygrad.cli", "problems imports cli, which is below it"),
        ("solvers/a.py", "if TYPE_CHECKING:\n    from bygrad import cli", "solvers imports cli, which is below it"),
        ("_core/a.py", "from bygrad.problems import Quadratic", "_core imports problems, which is below it"),
        ("deploy/a.py", "import importlib as i\ni.import_module('bygrad.cli')", "deploy imports cli"),
        (
            "deploy/a.py",
            "from importlib import import_module\nimport_module('..cli', __package__)",
            "deploy imports cli",
        ),
        ("unroll/a.py", "from bygrad import Adam", "unroll imports the root of the package"),
        ("unroll/a.py", "import bygrad", "unroll imports the root of the package"),
        ("utils/a.py", "", "utils is not a room"),
        ("tools.py", "", "tools is not a room"),
        ("artifacts/a.py", "import jax.numpy as jnp", "artifacts imports jax.numpy"),
        ("artifacts/a.py", "from equinox import Module", "artifacts imports equinox.Module"),
        ("artifacts/a.py", "import optax", "artifacts imports optax"),
        ("problems/data/images.py", "from datasets import load_dataset", "may use the network"),
        ("cli.py", "import urllib.request", "may use the network"),
        ("deploy/card.py", "import huggingface_hub", "may use the network"),
        ("cli.py", "import requests", "may use the network"),
        ("__init__.py", "import socket", "may use the network"),
        ("cli.py", "from http import client", "may use the network"),
        ("training/a.py", "import pickle", "runs code from a file"),
        ("training/a.py", "import torch as t\nt.load('x')", "calls torch.load, which runs code from a file"),
        ("training/a.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allows pickle"),
        ("training/a.py", "import numpy as np\nnp.load('x', allow_pickle=trusted)", "allows pickle"),
        ("training/a.py", "exec('1')", "calls exec, which runs text as code"),
        ("training/a.py", "x = eval('1')", "calls eval, which runs text as code"),
        ("training/a.py", "import jax\njax.config.update('jax_enable_x64', True)", "calls jax.config.update"),
        ("training/a.py", "from jax import config as c\nc.update('jax_enable_x64', True)", "calls jax.config.update"),
        ("training/a.py", "import jax\njax.random.key(0)", "calls jax.random.key, whose kind"),
        ("training/a.py", "import jax as j\nj.config.jax_enable_x64 = True", "sets jax.config"),
    ],
)
def test_a_breach_is_caught(place: str, text: str, complaint: str, tmp_path: Path) -> None:
    root = tmp_path / "bygrad"
    (root / place).parent.mkdir(parents=True)
    (root / place).write_text(text + "\n")
    (first, *_) = violations(root)
    line = 2 if "\n" in text else 1
    assert first.startswith(f"{place}:{line}: ")
    assert complaint in first


def test_rooms_that_import_each_other_are_named(tmp_path: Path) -> None:
    root = tmp_path / "bygrad"
    for place, text in {"unroll/a.py": "from ..metagrads import b", "metagrads/b.py": "from ..unroll import a"}.items():
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text(text)
    assert violations(root)[-1] == "metagrads and unroll import each other"


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    root = tmp_path / "bygrad"
    texts = {
        "__init__.py": "from importlib import import_module\nAdam = import_module('bygrad.optimizers').Adam",
        "cli.py": "from bygrad import __version__\nfrom bygrad.experiments import run",
        "problems/data/download.py": "import datasets",
        "deploy/hub.py": "import huggingface_hub",
        "problems/a.py": "import numpy\nfrom .._core import trees\nnumpy.load('x', allow_pickle=False)",
        "artifacts/a.py": "import numpy as np\nfrom .._core.files import write_atomically",
        "deploy/torch.py": "import torch\nmodel.eval()\nconfig = {}\nconfig.update(a=1)",
        "training/a.py": "import jax\nfrom ..metagrads import es\nlimit = jax.config.jax_enable_x64",
    }
    for place, text in texts.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text)
    assert violations(root) == []


@pytest.mark.parametrize(
    "arguments",
    [("-m", "bygrad", "--help"), ("-c", "import bygrad"), ("-c", "import bygrad.artifacts")],
    ids=["help", "root", "artifacts"],
)
def test_stays_light(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    times = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rsplit("|", 1)[1].strip() for line in times}
    assert "bygrad" in loaded
    assert sorted(name for name in loaded if is_within(name, HEAVY)) == []


def test_no_room_starts_jax_by_being_imported() -> None:
    """`jax.distributed.initialize` and the choice of devices come before, and a user may import first."""
    rooms = [room for room in ROOMS if room != "_core"]
    code = (
        f"import bygrad, importlib; [importlib.import_module('bygrad.' + it) for it in {rooms}]\n"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_test_module_that_cannot_be_imported_is_an_error(tmp_path: Path) -> None:
    module = tmp_path / "test_gone.py"
    module.write_text("from bygrad import nothing_of_this_name\n\n\ndef test_nothing():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(HOUSE / "pyproject.toml")]
    done = subprocess.run([*command, str(module)], capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.INTERRUPTED and "cannot import name" in done.stdout, done.stdout
