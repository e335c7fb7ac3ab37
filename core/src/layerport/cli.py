"""The command line.  Imports click only: each command imports what it needs when it runs."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

import layerport.checks
import layerport.commands
import layerport.engine
from layerport.errors import LayerportError
from layerport.system import interrupts

# The interpreter would walk all that Torch has made once more when it ends, for a second or so.
atexit.register(gc.freeze)

EPILOG = "Exit codes: 0 fine, 1 the answer is no, 2 wrong use, 3 a pack's fault, 4 a tool or build failed."

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
pack_option = click.option(
    "--pack",
    "packs",
    multiple=True,
    metavar="PACK",
    help="Also use this pack: a Python file, or an installed pack's name.",
)
prefer_option = click.option(
    "--prefer",
    "prefer",
    multiple=True,
    metavar="PACK",
    help="The same, and where several packs answer, this one goes first.",
)


def exits(command: Callable[..., int | None]) -> Callable[..., None]:
    """Turn what a command raises into a message on stderr and the exit code of its kind."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with interrupts.raised() as signals:
            try:
                with signals.kept():
                    code = command(*args, **kwargs) or 0
            except LayerportError as error:
                click.echo(f"error: {error}", err=True)
                code = error.exit_code
            except KeyboardInterrupt as error:
                signals.over = True
                code = _interrupted(error)
            except BrokenPipeError:
                raise
            except SystemExit as error:  # no command ends like that: the model's code did
                click.echo(f"error: code that was run left by SystemExit: {error}; nothing was written", err=True)
                code = 4
            except Exception:
                import traceback

                traceback.print_exc()
                click.echo("error: this is a fault of layerport; please report the lines above", err=True)
                code = 4
            signals.over = True
        _end(code)

    return run


def _end(code: int) -> NoReturn:
    state = sys.modules.get("layerport.packs.process_state")
    if state is not None and state.is_kept_from_ending():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)  # Python would wait for what a pack has left running, perhaps for ever
    sys.exit(code)


def _interrupted(error: KeyboardInterrupt) -> int:
    """Say by what, and what was written; the exit code by the convention of shells."""
    number = error.number if isinstance(error, interrupts.Interrupted) else signal.SIGINT
    what = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    written = "; ".join(getattr(error, "__notes__", ())) or "nothing was written"
    click.echo(f"error: {what}; {written}", err=True)
    return 128 + number


@contextmanager
def _telling_what_was_written(out: str | None) -> Iterator[None]:
    """Have an interrupt say so where something new is at `out` by then."""
    before = _identity(out)
    try:
        yield
    except BaseException as error:  # an interrupt, or what some library made of it
        if _identity(out) != before:
            error.add_note(f"{out} was written before that")
        raise


def _identity(path: str | None) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino, found.st_mtime_ns)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="layerport")
def main() -> None:
    """Turn Torch models with custom layers into TensorRT engines."""


class _BuildCommand(click.Command):
    """Lists the engine options below the help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:

        with formatter.section("Engine options"):
            formatter.write_dl(
                [(f"{one.name}={one.form}", one.help) for one in layerport.engine.options.OPTIONS.values()]
            )


@main.command(cls=_BuildCommand)
@click.argument("source")
@click.option("-o", "--output", "out", required=True, metavar="OUT.lp", help="The bundle to write.")
@click.option("--target", metavar="TARGET", help="rtx:sm_89,sm_120 | tensorrt | portable.  Default: what is installed.")
@click.option("--range", "ranges", multiple=True, metavar="DIM=MIN..USUAL..MAX", help="Sizes of a dynamic dim.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=DTYPE:DIMS", help="An example input, for a bare module."
)
@click.option("--claim", multiple=True, metavar="LAYER", help="Every claim of this layer must hold.")
@click.option("--no-claim", multiple=True, metavar="LAYER", help="Do not use this layer.")
@click.option(
    "--lossy",
    multiple=True,
    metavar="LAYER=PATTERN[:LIMIT]",
    help="Modules that may be claimed with a loss, up to LIMIT.",
)
@click.option("--find", multiple=True, metavar="LAYER", help="This layer must be found in the graph.")
@click.option("--no-find", multiple=True, metavar="LAYER", help="Do not search this layer in the graph.")
@click.option("--decompose", multiple=True, metavar="LAYER", help="Build this layer from its body, without a plugin.")
@click.option(
    "--realise", multiple=True, metavar="[LAYER=]HOW", help="auto, plugin or decompose: this layer, or all of them."
)
@pack_option
@prefer_option
@click.option("--locked", is_flag=True, help="Refuse packs that differ from layerport.lock in this folder.")
@click.option("--strict", is_flag=True, default=None, help="A claim that does not hold is an error.")
@click.option("--force", is_flag=True, help="Overwrite an existing bundle.")
@click.option("--no-verify", is_flag=True, help="Do not compare with Torch at the end.")
@click.option(
    "--option", "texts", multiple=True, metavar="NAME=VALUE", help="An engine option for TensorRT; see the list below."
)
@json_option
@exits
def build(source: str, out: str, no_verify: bool, texts: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Build a bundle from SOURCE and verify it.

    SOURCE is 'module:callable' or 'file.py:callable', returning (module, args) or (module, args, dynamic_shapes),
    or an .onnx file.
    """

    from layerport import building

    engine_options = layerport.engine.options.split_options(texts)
    with _telling_what_was_written(out):
        with layerport.engine.shown_progress.shown(enabled=not as_json) as tell:
            try:
                report = building.build(
                    source,
                    out,
                    verify=not no_verify,
                    options=engine_options,
                    progress=tell,
                    **options,
                )
            except LayerportError as error:
                if isinstance(error.report, building.BuildReport) and error.report.layers:
                    layerport.commands.reports.print_layers(error.report, file=sys.stderr)
                raise
        _answer(report, layerport.commands.reports.print_build, as_json)
    return 1 if report.verification is not None and not report.verification.passed else 0


@main.command()
@click.argument("bundle")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute tolerance; default by dtype.")
@click.option("--rtol", type=click.FloatRange(min=0), help="Relative tolerance; default by dtype.")
@click.option("--no-kernels", is_flag=True, help="Do not run the plugins' kernels, which needs Torch and the packs.")
@pack_option
@prefer_option
@json_option
@exits
def verify(
    bundle: str,
    device: str,
    atol: float | None,
    rtol: float | None,
    no_kernels: bool,
    packs: tuple[str, ...],
    prefer: tuple[str, ...],
    as_json: bool,
) -> int:
    """Compare BUNDLE with Torch on its samples, and its plugins' kernels with their references."""
    result = layerport.checks.verification.verify(
        bundle, device=device, atol=atol, rtol=rtol, kernels=not no_kernels, packs=packs, prefer=prefer
    )
    _answer(result, layerport.commands.reports.print_verification, as_json)
    return 0 if result.passed else 1


@main.command()
@click.argument("bundle")
@click.option("--input", "inputs", multiple=True, metavar="NAME=FILE.npy", help="An input; default: the samples.")
@click.option("-o", "--output", "out", metavar="FOLDER", help="Where to write the outputs, NAME.npy each.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--force", is_flag=True, help="Overwrite existing output files.")
@json_option
@exits
def run(bundle: str, inputs: tuple[str, ...], out: str | None, device: str, force: bool, as_json: bool) -> int:
    """Run BUNDLE on inputs from files."""
    with _telling_what_was_written(out):
        result = layerport.commands.running.run_bundle(bundle, inputs, out, device=device, force=force)
    return _answer(result, layerport.commands.running.print_result, as_json)


@main.command()
@click.argument("bundle")
@click.option("--source", metavar="SOURCE", help="The model it was built from, to measure Torch beside it on a GPU.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seconds", type=float, default=3.0, show_default=True, help="How long to measure each side.")
@click.option("--cuda-graph", is_flag=True, help="Replay the engine as a CUDA graph.")
@json_option
@exits
def bench(bundle: str, as_json: bool, **options: Any) -> int:
    """Measure latency and throughput of BUNDLE on its samples."""
    report = layerport.commands.benching.bench(bundle, **options)
    return _answer(report, layerport.commands.benching.print_bench, as_json)


@main.command()
@click.argument("bundle")
@click.option("--alone", is_flag=True, help="Build each layer without its plugin too: what TensorRT makes of it alone.")
@json_option
@exits
def inspect(bundle: str, as_json: bool, alone: bool) -> int:
    """Show what is in BUNDLE."""
    summary = layerport.commands.reports.inspect_bundle(bundle, alone=alone)
    return _answer(summary, layerport.commands.reports.print_inspection, as_json)


@main.command()
@click.argument("bundle")
@click.option(
    "--for",
    "tool",
    type=click.Choice(["trtexec", "triton", "deepstream", "cpp"]),
    required=True,
    help="The program that is to run it.",
)
@click.option("-o", "--output", "out", required=True, metavar="FOLDER", help="The folder to write.")
@json_option
@exits
def export(bundle: str, tool: str, out: str, as_json: bool) -> int:
    """Write what a program without Python needs to run BUNDLE: plan, model, plugin library, settings and commands."""
    with _telling_what_was_written(out):
        made = layerport.commands.exporting.export_bundle(bundle, tool, out)
    return _answer(made, layerport.commands.exporting.print_exported, as_json)


@main.command()
@click.argument("source")
@click.argument("layer", required=False)
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=DTYPE:DIMS", help="An example input, for a bare module."
)
@click.option(
    "--range", "ranges", multiple=True, metavar="DIM=MIN..USUAL..MAX", help="Sizes of a dim named in --input."
)
@pack_option
@prefer_option
@json_option
@exits
def explain(source: str, layer: str | None, as_json: bool, **options: Any) -> int:
    """Show which modules of SOURCE are claimed by which layer, why others are not, and the parameters' paths."""
    result = layerport.commands.explaining.explain(source, layer, **options)
    return _answer(result, layerport.commands.explaining.print_explanation, as_json)


@main.command()
@click.option("--load", is_flag=True, help="Import each pack and say why one fails.")
@pack_option
@json_option
@exits
def packs(load: bool, packs: tuple[str, ...], as_json: bool) -> int:
    """List the installed layer packs."""
    return _answer(
        layerport.commands.packs.packs_report(explicit=packs, load=load), layerport.commands.packs.render_packs, as_json
    )


@main.command()
@pack_option
@json_option
@exits
def layers(packs: tuple[str, ...], as_json: bool) -> int:
    """List every layer of every pack."""
    return _answer(
        layerport.commands.packs.layers_report(explicit=packs), layerport.commands.packs.render_layers, as_json
    )


@main.command()
@pack_option
@json_option
@exits
def lock(packs: tuple[str, ...], as_json: bool) -> int:
    """Write layerport.lock here: the packs, their versions, a digest of each layer."""
    made = layerport.commands.packs.lock_packs(explicit=packs)
    return _answer(made, layerport.commands.packs.render_lock, as_json)


@main.command()
@click.argument("pack")
@click.option("--layer", "layers", multiple=True, metavar="LAYER", help="Check this layer only.")
@click.option("--gpu", is_flag=True, help="Also run the kernels on this machine's GPU.")
@click.option("--seconds", type=float, default=120.0, show_default=True, help="How long each check may take.")
@click.option("--junit", metavar="FILE", type=click.Path(dir_okay=False), help="Also write a report for CI services.")
@json_option
@exits
def check(pack: str, layers: tuple[str, ...], gpu: bool, seconds: float, junit: str | None, as_json: bool) -> int:
    """Check every layer of PACK, an installed pack or a Python file, without a GPU unless --gpu is given."""
    checking = layerport.commands.checking
    with checking.shown_checks(enabled=not as_json) as begin:
        report = checking.check_pack(pack, layers=layers, gpu=gpu, seconds=seconds, begin=begin)
    if junit is not None:
        checking.write_junit(report, junit)
    _answer(report, checking.render_check, as_json)
    return 0 if report.passed else 3


@main.command()
@click.argument("name")
@click.option("--toolchain", default="cuda", show_default=True, metavar="cuda|triton", help="What its kernel is in.")
@click.option("--layer", default="scaled_swish", show_default=True, metavar="NAME", help="What its layer is called.")
@json_option
@exits
def new(name: str, toolchain: str, layer: str, as_json: bool) -> int:
    """Write a new pack NAME: layer, kernel, tests, packaging, CI."""
    made = layerport.commands.new_pack.new_pack(name, toolchain=toolchain, layer=layer)
    return _answer(made, layerport.commands.new_pack.render_new_pack, as_json)


@main.command()
@json_option
@exits
def doctor(as_json: bool) -> int:
    """Show what works on this machine and what to install."""
    return _answer(layerport.commands.doctor.doctor_report(), layerport.commands.doctor.render_doctor, as_json)


def _answer(record: Any, render: Callable[[Any], None], as_json: bool) -> int:
    """Print the record that a command comes to."""
    if as_json:
        layerport.commands.tables.print_json(record.to_json())
    else:
        render(record)
    return 0
