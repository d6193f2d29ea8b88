"""``gpuhmm coalesce``: the same faults under the rules of several drivers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuhmm.cli.coalesce_list import print_list
from gpuhmm.cli.outputs import check_outputs
from gpuhmm.cli.parameters import kernel_name

if TYPE_CHECKING:
    from gpuhmm.coalesce.experiment import Experiment
    from gpuhmm.coalesce.run import CoalesceRun
    from gpuhmm.coalesce.sweep import Sweep
    from gpuhmm.errors import LivelockError

_SOURCE = (
    "A trace file (Parquet, CSV or log of uvm-eval, SQLite export of nsys), or a pattern with parameters, as "
    "stream or sgemm:n=4096."
)
_DRIVER = "Drivers, with commas between; all but free without any, and free for a sweep."
_SET = "A setting of the drivers, as window=64K or uvm.batch=512; may be given more than once."
_DEVICE_SET = "A setting of the device, as fault_interval_ns=20; may be given more than once."
_COST = "A time of the cost model in ns, as page=1000; may be given more than once."
_CPU = "What the CPU does meanwhile, how often a millisecond, to how many pages: dontneed:5, protect:1:16."
_OUT = "Write batches (.parquet, .npy) or totals (.json); of a sweep its points."
_SAVE = "Write the faults that the driver read as a trace (.parquet), which is a SOURCE; takes one --driver."
_SWEEP = (
    "Run every combination: batch=64..4096,window=4K..2M (powers of two), request=access|vma (words); "
    "device.NAME sweeps a setting of the device."
)
_LIST = "Print all patterns, drivers, devices, layouts and cost models with what can be set, and exit."
_FOLDER = "Where finished points of a sweep are kept; else in NAME-sweep here, after the source."


def coalesce(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCE)],
    driver: Annotated[str | None, typer.Option(metavar="NAME,...", help=_DRIVER)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=_SET)] = None,
    device: Annotated[str, typer.Option(help="The device that faults.")] = "titan-v",
    device_set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=_DEVICE_SET)] = None,
    layout: Annotated[
        str, typer.Option(help="What the memory is before, as gpuhmm faults has it.")
    ] = "written",
    kernel: Annotated[
        str, typer.Option(parser=kernel_name, metavar="NAME", help="Whose rules: v5.18 to v7.3.")
    ] = "v6.1",
    costs: Annotated[str, typer.Option(help="The cost model, by name.")] = "sc21-titan-v",
    cost: Annotated[list[str] | None, typer.Option(metavar="STEP=NS", help=_COST)] = None,
    cpu: Annotated[str | None, typer.Option(metavar="OPERATION:PER_MS[:PAGES]", help=_CPU)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the device and of the CPU.")] = 0,
    backend: Annotated[str, typer.Option(help="What walks: cpu, reference, cuda or auto.")] = "cpu",
    max_batches: Annotated[int | None, typer.Option(min=1, help="End a run after that many batches.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help=_OUT)] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(help="Write a trace for ui.perfetto.dev (.pftrace); needs the package perfetto."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw it (.png, .svg, .pdf); needs matplotlib.")
    ] = None,
    save_trace: Annotated[Path | None, typer.Option(metavar="FILE", help=_SAVE)] = None,
    sweep: Annotated[str | None, typer.Option(metavar="AXES", help=_SWEEP)] = None,
    sweep_folder: Annotated[Path | None, typer.Option(help=_FOLDER)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of a sweep.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")] = False,
    list_: Annotated[bool, typer.Option("--list", callback=print_list, is_eager=True, help=_LIST)] = False,
) -> None:
    """Replay the faults of a device through the rules of several drivers, and count what they do.

    The drivers ask hmm_range_fault over modelled address spaces; the device goes on when they replay.
    With --list it says which patterns, drivers and settings there are.

        gpuhmm coalesce stream
        gpuhmm coalesce sgemm:n=2048 --driver uvm,xe --set uvm.batch=512 --picture sgemm.png
        gpuhmm coalesce faults.parquet --cpu dontneed:5 --perfetto faults.pftrace --out batches.parquet
        gpuhmm coalesce sgemm --driver uvm --save-trace sgemm.parquet
        gpuhmm coalesce random --driver free --sweep batch=64..4096,window=4K..2M --picture sweep.png
    """
    from gpuhmm.coalesce.experiment import Experiment
    from gpuhmm.hmm.backends import resolve_backend

    _check_files(source, out, perfetto, picture, save_trace)
    if sweep is None and sweep_folder is not None:
        raise typer.BadParameter("--sweep-folder belongs to --sweep")
    if sweep is None and jobs > 1:
        raise typer.BadParameter("--jobs belongs to --sweep")
    if sweep is not None and perfetto is not None:
        raise typer.BadParameter("--perfetto goes with runs, not with --sweep")
    if sweep is not None and save_trace is not None:
        raise typer.BadParameter("--save-trace goes with a run, not with --sweep")
    experiment = Experiment(
        source,
        device=device,
        device_settings=_pairs("--device-set", device_set),
        layout=layout,
        kernel=kernel,
        costs=costs,
        cost_times=tuple((name, _time(name, value)) for name, value in _pairs("--cost", cost)),
        cpu=cpu,
        seed=seed,
        backend=resolve_backend(backend).name,
        max_batches=max_batches,
    )
    experiments = _experiments(experiment, driver, _pairs("--set", set_), sweeping=sweep is not None)
    if sweep is not None:
        if len(experiments) > 1:
            raise typer.BadParameter("--sweep takes one --driver")
        _sweep(experiments[0], sweep, sweep_folder, jobs, out, picture, as_json)
        return
    if save_trace is not None and len(experiments) > 1:
        raise typer.BadParameter("--save-trace takes one --driver: which faults come depends on it")
    keep = perfetto is not None or picture is not None or save_trace is not None
    experiments, runs, failed = _run_all(experiments, timeline=keep)
    notes = list(_write_files(experiments, runs, out, perfetto, picture, save_trace))
    if as_json:
        typer.echo(json.dumps(_report(experiments, runs), indent=1))
    else:
        from gpuhmm.cli.coalesce_tables import print_runs

        print_runs(experiments, runs)
        for note in notes:
            typer.echo(note)
    for error in failed:
        typer.echo(f"gpuhmm: {error}", err=True)
    if failed:
        raise typer.Exit(1)


def _check_files(
    source: str, out: Path | None, perfetto: Path | None, picture: Path | None, save_trace: Path | None
) -> None:
    """Raise for what could not be written, before anything runs."""
    outputs = {"--out": out, "--perfetto": perfetto, "--picture": picture, "--save-trace": save_trace}
    check_outputs(outputs, read=Path(source))
    if out is not None:
        from gpuhmm.results.files import check_suffix

        check_suffix(out)
    if picture is not None:
        from gpuhmm.results.figure import picture_suffix

        picture_suffix(picture)
    if perfetto is not None:
        from gpuhmm.coalesce.perfetto_trace import protos

        if perfetto.suffix != ".pftrace":
            raise typer.BadParameter(f"--perfetto must name a .pftrace file (got {perfetto})")
        protos()
    if save_trace is not None:
        from gpuhmm.results.parquet import pyarrow

        if save_trace.suffix != ".parquet":
            raise typer.BadParameter(f"--save-trace must name a .parquet file (got {save_trace})")
        pyarrow()


def _pairs(option: str, given: list[str] | None) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in given or ():
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if not (name and equals and value):
            raise typer.BadParameter(f"{option} must be NAME=VALUE (got {text!r})")
        pairs.append((name, value))
    return tuple(pairs)


def _time(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"--cost {name} must be a time in ns (got {value!r})") from None


def _experiments(
    experiment: Experiment, names: str | None, given: tuple[tuple[str, str], ...], *, sweeping: bool
) -> list[Experiment]:
    """Return an experiment a driver, all of them checked."""
    from dataclasses import replace

    from gpuhmm.coalesce.drivers.registry import DRIVERS
    from gpuhmm.coalesce.experiment import FREE, default_drivers, settings_of_drivers

    drivers = [name.strip() for name in names.split(",")] if names is not None else []
    for name in drivers:
        if name not in DRIVERS or drivers.count(name) > 1:
            raise typer.BadParameter(f"--driver must be of {', '.join(DRIVERS)}, each once (got {names!r})")
    drivers = drivers or ([FREE] if sweeping else default_drivers())
    settings = settings_of_drivers(drivers, list(given))
    made = [replace(experiment, driver=name, settings=tuple(settings[name].items())) for name in drivers]
    for one in made:
        one.check()
    return made


#: What takes so long before the first batch.
_COMPILES = "(the first run of a version compiles it, some 30 s)"


def _run_all(
    experiments: list[Experiment], *, timeline: bool
) -> tuple[list[Experiment], list[CoalesceRun], list[LivelockError]]:
    """Return the experiments that came to an end, their runs, and the livelocks of the others.

    LivelockError if that is all there is.
    """
    from gpuhmm.coalesce.timeline import Timeline
    from gpuhmm.errors import LivelockError

    ended, runs, failed = [], [], []
    with _bar() as show:
        for one in experiments:
            show(f"{one.driver}: preparing {_COMPILES}", 0, None)

            def progress(batches: int, name: str = one.driver) -> None:
                show(f"{name}: {batches:,} batches", 0, None)

            try:
                runs.append(one.run(timeline=Timeline(keep=timeline), progress=progress))
                ended.append(one)
            except LivelockError as error:
                failed.append(error)
    if not runs:
        raise failed[0]
    return ended, runs, failed


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield what moves a progress bar on standard error: words, how many are done, and of how many."""
    from rich.console import Console
    from rich.progress import Progress

    messages = Console(stderr=True)
    with Progress(console=messages, transient=True, disable=not messages.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(words: str, done: int, total: int | None) -> None:
            bar.update(task, description=words, completed=done, total=total)

        yield show


def _write_files(
    experiments: list[Experiment],
    runs: list[CoalesceRun],
    out: Path | None,
    perfetto: Path | None,
    picture: Path | None,
    save_trace: Path | None,
) -> Iterator[str]:
    """Write what was asked for; yield what there is to say about it."""
    source = experiments[0].source
    if out is not None:
        from gpuhmm.coalesce.run_table import run_table
        from gpuhmm.results.files import write_results

        write_results(out, run_table(runs), summary=_report(experiments, runs))
        yield f"written: {out}"
    if perfetto is not None:
        from gpuhmm.coalesce.perfetto_trace import write_perfetto

        written = write_perfetto(perfetto, runs)
        yield f"written: {perfetto}" + (
            f", with the first faults of each driver: {written.faults:,} of "
            f"{written.faults + written.faults_left_out:,}"
            if written.faults_left_out
            else ""
        )
    if picture is not None:
        from gpuhmm.coalesce.pictures import draw_runs

        draw_runs(picture, runs, f"{source}; memory: {experiments[0].layout}")
        yield f"drawn: {picture}"
    if save_trace is not None:
        from gpuhmm.coalesce.readers import write_trace

        faults = runs[0].timeline.faults()
        faults.notes = {"made_by": "gpuhmm coalesce", "experiment": experiments[0].identity()}
        write_trace(save_trace, faults)
        yield f"written: {save_trace}, {len(faults):,} faults"
    for run in runs:
        if run.timeline.left_out:
            yield f"{run.driver}: {run.timeline.left_out:,} faults and marks were too many to be kept"


def _report(experiments: list[Experiment], runs: list[CoalesceRun]) -> dict[str, Any]:
    from gpuhmm.hmm.backends import resolve_backend

    first = experiments[0]
    info = resolve_backend(first.backend)
    return {
        "source": first.source,
        "device": asdict(first.device_config()),
        "layout": first.layout,
        "kernel": first.kernel,
        "cpu": first.cpu,
        "seed": first.seed,
        "backend": info.name,
        "walked_on": info.device,
        "costs": asdict(first.costs_of()),
        "runs": [
            {
                "driver": run.driver,
                "rules": run.source,
                "settings": run.settings,
                "totals": run.totals,
                "device": asdict(run.device),
                "model_ns": run.model_ns,
                "finished": run.finished,
                "seconds": run.seconds,
            }
            for run in runs
        ],
    }


def _sweep(
    experiment: Experiment,
    text: str,
    folder: Path | None,
    jobs: int,
    out: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    from gpuhmm.coalesce.axes import parse_axes
    from gpuhmm.coalesce.sources import source_name
    from gpuhmm.coalesce.sweep import sweep
    from gpuhmm.coalesce.sweep_picture import check_drawable, draw_sweep

    axes = parse_axes(text)
    if picture is not None:
        check_drawable(axes)
    target = folder or Path(f"{source_name(experiment.source)}-sweep")
    heard = [0, 0]
    with _bar() as show:

        def progress(done: int, total: int) -> None:
            words = f"{done:,} of {total:,} points"
            show(words if heard[1] else f"{words} {_COMPILES}", done, total)
            heard[:] = done, total

        try:
            made = sweep(experiment, axes, target, jobs=jobs, progress=progress)
        except KeyboardInterrupt:
            typer.echo(
                f"at least {heard[0]:,} of {heard[1]:,} points are in {target}; "
                "the same command does the rest",
                err=True,
            )
            raise
    if out is not None:
        made.write(out)
    if picture is not None:
        draw_sweep(picture, made, f"{experiment.source}, driver {experiment.driver}")
    _say_sweep(made, target, out, picture, as_json)


def _say_sweep(made: Sweep, target: Path, out: Path | None, picture: Path | None, as_json: bool) -> None:
    if as_json:
        report = {
            "experiment": made.experiment.identity(),
            "folder": str(target),
            "ran": made.ran,
            "found": made.found,
            "points": made.rows,
        }
        typer.echo(json.dumps(report, indent=1))
        return
    from gpuhmm.cli.coalesce_tables import print_sweep

    print_sweep(made)
    typer.echo(f"{made.ran:,} points were run, {made.found:,} were there; all are kept in {target}")
    if out is not None:
        typer.echo(f"written: {out}")
    if picture is not None:
        typer.echo(f"drawn: {picture}")
