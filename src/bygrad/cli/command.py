"""All subcommands of `bygrad`. What is heavy is imported where it is used, so that help and mistakes answer at once."""

import os
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from inspect import signature
from typing import Any

import platformdirs
import tyro
from rich.console import Console
from rich.markup import escape

from .._core.hosts import INCOMPLETE, LostProcessError, first_line, usable_cores
from .._core.remarks import visible
from .artifacts import inspect, pull, push, verify
from .experiments import evaluate, list_names, reproduce, specialize, stylize
from .job import hearing_ctrl_c, in_job, interrupt, leave, withhold
from .solvers import learn, report, solve
from .train import train


def run(arguments: list[str] | None = None) -> None:
    """Run the command; exits with 0, with 2 after an error of the user's, with 130 after Ctrl-C, with 1 where nobody
    reads its output any more.

    A job of several processes that lost one exits with 75: try again, with --resume.
    """
    commands: dict[str, Callable[..., Any]] = {
        "list": list_names,
        "reproduce": reproduce,
        "train": train,
        "specialize": specialize,
        "evaluate": evaluate,
        "inspect": inspect,
        "verify": verify,
        "push": push,
        "pull": pull,
        "stylize": stylize,
        "learn": learn,
        "solve": solve,
        "report": report,
    }
    name = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    if name in ("--version", "-V"):
        print(f"bygrad {metadata.version('bygrad')}")
        return
    _keep_compiled_programs()
    if name in ("train", "specialize") and "jax" not in sys.modules:
        _let_cores_share_instances()
    try:
        with hearing_ctrl_c():
            tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="bygrad",
                description="Optimizers learned by gradient descent: learn one for problems you solve again and again.",
                args=arguments,
            )
    except KeyboardInterrupt:
        go_on = " Add --resume to the same command to go on from what was saved, if it came so far."
        saved = go_on if _resumes(commands, name) else ""
        Console(stderr=True).print(f"Interrupted.{saved}")
        interrupt()
    except BrokenPipeError:  # the reader of a pipe has gone, `head`, say; where Rich prints, it ends in this way itself
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would write what is left of it
        leave(1)
    except LostProcessError as error:
        _refuse(error)
        leave(INCOMPLETE)
    except (ValueError, TypeError, ImportError, OSError, MemoryError, FloatingPointError, OverflowError) as error:
        if os.environ.get("BYGRAD_TRACEBACK"):
            raise
        _refuse(error)
        leave(2)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error) and not os.environ.get("BYGRAD_TRACEBACK"):  # JAX's, which loads late
            kept = " What was saved by then is kept: add --resume." if _resumes(commands, name) else ""
            _refuse(
                MemoryError(
                    f"A device ran out of memory ({first_line(error)}), so the command stopped.{kept} Lower what is"
                    " held at a time (--instances, --validation-runs, --truncation, --batch), or use a device with more"
                    " memory."
                )
            )
            leave(2)
        if not in_job():
            raise
        traceback.print_exc()
        leave(1)
    finally:
        withhold()


def _resumes(commands: dict[str, Callable[..., Any]], name: str) -> bool:
    return name in commands and "resume" in signature(commands[name]).parameters


def _refuse(error: Exception) -> None:
    text = visible(str(error))
    if isinstance(error, OverflowError):  # of a conversion, which does not say of what
        text = f"A number is too large to compute with ({text}). Give seeds and counts below 2^31."
    Console(stderr=True).print(f"[red]bygrad:[/red] {escape(text)}", soft_wrap=True, highlight=False)


def _keep_compiled_programs() -> None:
    """Keep what JAX compiles in the user's cache folder, unless the user has chosen another: read when JAX loads."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(platformdirs.user_cache_path("bygrad") / "compiled"))
    # A command has many small programs, and every start would wait for all of them.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def _let_cores_share_instances() -> None:
    """Make a device of every core, unless the user has said how many: read when JAX loads.

    The instances of a meta-step divide among devices. Inside of one, cores share what single operations do, and those
    of small problems are too small for that. An accelerator is used before all of them. Not where solvers are all that
    runs: those compile for every device, which small batches do not repay. Nor where a record is to be made again: the
    sums of two devices are rounded otherwise.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(usable_cores()))
