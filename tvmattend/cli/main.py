# SPDX-License-Identifier: Apache-2.0
"""The command group. Subcommands are imported when they are called, so `--help` stays fast."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from tvmattend import __version__
from tvmattend.errors import StorageError
from tvmattend.storage import cache_root, storage_fault

# name -> one-line help (shown without importing the command)
_COMMANDS = {
    "models": "List the networks that ship, with parameters, MACs and input size.",
    "tune": "Tune the kernels of a network on this machine or on a board over RPC.",
    "build": "Compile a network into a bundle for a device.",
    "run": "Run a bundle on an input, here or on a board, and time it.",
    "validate": "Compare a bundle's outputs with the reference, here or on a board.",
    "bench": "Time a network here beside other runtimes, outputs compared first.",
    "profile": "Show where the time of a bundle goes, kernel by kernel, here or on a board.",
    "estimate": "Estimate the time of a bundle or a program on a Cortex-A72, without one.",
    "sign": "Sign a bundle, so that devices can require your signature; make a key.",
    "boards": "List the boards of a tracker: core, clock, governor, temperature, free or busy.",
    "device": "Serve this machine, or an emulated Cortex-A72, as a board over RPC.",
}


@contextmanager
def _stopped_politely() -> Iterator[None]:
    """`kill`, `timeout` and a closed terminal end a command as Ctrl-C does: nothing is left.

    The first of these signals interrupts, later ones change nothing: `timeout` sends two at once,
    and the second would interrupt the cleaning up. What is ignored, as under `nohup`, stays so.
    """
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            signal.default_int_handler(number, frame)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other can
        for each in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) is not signal.SIG_IGN:
                before[each] = signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class LazyGroup(click.Group):
    """Imports `tvmattend.cli.<name>` only when that subcommand runs or shows its help."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand, which signals interrupt."""
        with _stopped_politely():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names in the order a user meets them."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f"tvmattend.cli.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101  (a slip of ours, not a user's)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from the one-line helps above."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tvmattend")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Compile AttendNeXt and its kind for Arm boards: tune over RPC, build a bundle, run it."""
    del debug  # read by `main`, which outlives the click context


def _fail(error: Exception, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {error}", err=True)
    hint = getattr(error, "hint", "")
    if hint:
        click.echo(f"hint: {hint}", err=True)
    sys.exit(int(getattr(error, "exit_code", 1)))


def _tell_usage(error: click.ClickException) -> None:
    """Bring an error of click's into the form of ours: two lines, no full stop."""
    text = error.format_message().removesuffix(".")
    click.echo(f"error: {text[:1].lower()}{text[1:]}", err=True)
    context = getattr(error, "ctx", None)  # click does not always know which command it was
    command = "tvmattend" if context is None else context.command_path
    click.echo(f"hint: `{command} --help` lists what it takes", err=True)


@contextmanager
def errors_told(debug: bool = False) -> Iterator[None]:
    """The only place where errors become text and exit codes, for our benchmarks as well.

    Those that are faults of ours pass.
    """
    try:
        yield
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.exceptions.NoArgsIsHelpError as bare:
        bare.show()
        sys.exit(bare.exit_code)
    except click.ClickException as usage:
        _tell_usage(usage)
        sys.exit(usage.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "exit_code"):
            _fail(error, debug)
        if isinstance(error, OSError) and (fault := storage_fault(error)) is not None:
            fault.__cause__ = error  # for --debug
            _fail(fault, debug)
        raise


def _give_home() -> None:
    """Where the user has no home directory, TVM, which wants one as it is imported, has the cache.

    Without a cache either, the commands that need one say so.
    """
    try:
        Path.home()
    except RuntimeError:
        with suppress(StorageError):
            os.environ["HOME"] = str(cache_root())


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line."""
    argv = sys.argv[1:] if args is None else args
    # `--debug` is taken wherever it stands: a user adds it to the end of a line that failed. Behind
    # `--` the words are another program's.
    end = argv.index("--") if "--" in argv else len(argv)
    debug = "--debug" in argv[:end]
    argv = [word for word in argv[:end] if word != "--debug"] + argv[end:]
    code = None
    _give_home()
    try:
        with errors_told(debug):
            # Outside click's standalone mode `ctx.exit(n)` comes back as a value.
            code = cli.main(args=argv, prog_name="tvmattend", standalone_mode=False)
    except Exception as error:
        if debug:
            raise
        click.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
        click.echo(
            "hint: this is a fault of tvmattend; run again with --debug and report it", err=True
        )
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
