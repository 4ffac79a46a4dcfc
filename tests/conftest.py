"""What every test runs under: the CPU, checked annotations, and property tests that do not flicker."""

import contextlib
import importlib.metadata
import os
import signal
import sys
import tempfile
from collections.abc import Iterator

import hypothesis
import jaxtyping
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # to test on an accelerator, set it yourself
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may use the network
# Most of the suite's time goes into compiling small programs that run once: this compiles them three times faster.
_FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones abort on a flag that they do not know
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")])

# What a script runs in the background ignores Ctrl-C, and so would all that tests stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What one worker, module or process has compiled, the others load: from a folder that goes when the first one ends.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="bygrad-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}

# The hook rewrites modules while they are imported, so it must come before the first of them.
if early := sorted(name for name in sys.modules if name == "bygrad" or name.startswith("bygrad.")):
    raise RuntimeError(f"Imported before the type-checking hook, so unchecked: {', '.join(early)}.")
jaxtyping.install_import_hook("bygrad", "beartype.beartype")

# Compilation makes the first example slow, so time is no sign of a mistake. CI tries the same examples every time.
_SLOW_START = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("bygrad", deadline=None, suppress_health_check=_SLOW_START)
hypothesis.settings.register_profile("bygrad-ci", deadline=None, suppress_health_check=_SLOW_START, derandomize=True)
hypothesis.settings.load_profile("bygrad-ci" if os.environ.get("CI") else "bygrad")


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Thousands of compiled programs in one process reach the kernel's limit of memory maps, and XLA then fails."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@contextlib.contextmanager
def _nothing_is_rendered() -> Iterator[None]:
    """Rendering takes longer than most of what is tested around it."""
    from matplotlib.figure import Figure

    def savefig(self: Figure, file, *, format, **options):
        file.write(b"" if format == "png" else "<svg></svg>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture
def unrendered() -> Iterator[None]:
    with _nothing_is_rendered():
        yield


@pytest.fixture(scope="module", autouse=True)
def _rooms_without_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if request.path.parent.name in ("experiments", "workflows"):
            stack.enter_context(_nothing_is_rendered())
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--few-cases", action="store_true", help="keep one case of a parametrized test, the last")


@pytest.hookimpl(trylast=True)  # after `-m`: a case that it takes away is not the one to keep
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one case of each test: another version of JAX hardly ever changes a function for one of twenty alone."""
    if not config.getoption("--few-cases"):
        return
    kept = set({item.nodeid.split("[")[0]: id(item) for item in items}.values())
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]
