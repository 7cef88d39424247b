"""An agent's curves over its seeds for TensorBoard: `runs/<env>/<agent>/all/` holds the mean and the band of each metric.

TensorBoard draws a band where a layout of its custom scalars asks for one. The numbers are those of `tdraft plot`, from the same
CSVs; the folder has no progress.csv, so that nothing takes it for a run.
"""

import time
from pathlib import Path

from .curves import CurveError, learning_curve
from .runs import COLUMNS, STEP, read_progress, scalars

NAME = "all"
METRICS = tuple(column for column in COLUMNS if column.startswith(("rollout/", "train/")))


def write_bands(folder: Path) -> Path | None:
    """Write the bands of the runs in an agent's folder anew.

    :param folder: `runs/<env>/<agent>`, with `seed<k>/progress.csv` in it
    :return: the folder written, None where there are no two runs with a metric in common
    """
    tables = [read_progress(file) for file in sorted(folder.glob("seed*/progress.csv"))]
    curves = {}
    for metric in METRICS:
        runs = [{row[STEP]: row[metric] for row in rows if row[metric] != ""} for rows in tables]
        runs = [run for run in runs if run]
        try:
            if len(runs) > 1:
                curves[metric] = learning_curve(runs)
        except CurveError:
            continue  # they share no step
    if not curves:
        return None
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for old in (folder / NAME).glob("events.out.tfevents.*"):
        old.unlink()
    events = EventFileWriter(str(folder / NAME))
    events.add_event(Event(wall_time=time.time(), summary=Summary(value=[_layout(list(curves))])))
    for metric, curve in curves.items():
        for step, *band in zip(curve.steps, curve.centre, curve.low, curve.high):
            events.add_event(scalars(int(step), dict(zip(_tags(metric), band))))
    events.close()
    return folder / NAME


def _tags(metric: str) -> tuple[str, str, str]:
    """Tags of mean, lower and upper end; not the metric's own, which single runs have without a band."""
    return f"{metric}/mean", f"{metric}/low", f"{metric}/high"


def _layout(metrics: list[str]):
    """The summary that tells TensorBoard's custom scalars to draw a chart with a band for each metric."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    pb = layout_pb2
    charts = []
    for metric in metrics:
        value, lower, upper = _tags(metric)
        band = pb.MarginChartContent.Series(value=value, lower=lower, upper=upper)  # pyright: ignore[reportAttributeAccessIssue]
        content = pb.MarginChartContent(series=[band])  # pyright: ignore[reportAttributeAccessIssue]
        charts.append(pb.Chart(title=metric, margin=content))  # pyright: ignore[reportAttributeAccessIssue]
    title = "mean over seeds, 95% bootstrap bands"
    layout = pb.Layout(category=[pb.Category(title=title, chart=charts)])  # pyright: ignore[reportAttributeAccessIssue]
    return Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=make_tensor_proto([layout.SerializeToString()], shape=()),
    )
