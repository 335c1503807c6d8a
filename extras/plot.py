"""Draw the curves of runs. This needs matplotlib, which is in requirements-dev.txt.

    python extras/plot.py out/gan_mlp/log.csv out/dcgan/log.csv     # every column, over epochs
    python benchmarks/quality.py out/*/ckpt_*.pt --json > quality.json
    python extras/plot.py quality.json --out quality.png            # cFID, over epochs and minutes

Each quantity gets a panel, and each run a line, which is named after the folder of the run. For
cFID over epochs, train with --keep. For a Wasserstein script, there is also a panel of W and the
cFID of G after the same epoch.
"""

import argparse
import csv
import json
import math
from collections import defaultdict
from pathlib import Path


def read_log(path, panels):
    """Add the columns of a log.csv to panels: {(y, x): {run: [points (x, y)]}}."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    last = {int(row["epoch"]): int(row["step"]) for row in rows}    # the last step of each epoch
    for row in rows:
        epoch, step = int(row.pop("epoch")), int(row.pop("step"))
        start = last.get(epoch - 1, 0)
        x = epoch - 1 + (step - start) / (last[epoch] - start)      # lines come within epochs, too
        for name, value in row.items():
            if value:                   # W_val is empty in most rows
                panels[name, "epoch"][Path(path).parent.name].append((x, float(value)))


def read_quality(path, panels):
    """Add the results of `quality.py --json` to panels."""
    for result in sorted(json.loads(Path(path).read_text()), key=lambda r: r.get("epochs", 0)):
        run = Path(result["path"]).parent.name
        if "cFID" in result and "epochs" in result:     # not a folder of PNGs
            for x in "epochs", "minutes":
                panels["cFID", x][run].append((result[x], result["cFID"]))
        if "W_cFID" in result:
            panels["cFID of G", "W"][run] = [(W, cfid) for _, W, cfid in result["W_cFID"]]


def main(argv=None):
    parser = argparse.ArgumentParser(usage="python extras/plot.py PATH [PATH ...] [--out PICTURE]")
    parser.add_argument("paths", nargs="+", help="files log.csv, or the JSON of quality.py")
    parser.add_argument("--out", default="curves.png", help="the picture (default: curves.png)")
    args = parser.parse_args(argv)
    panels = defaultdict(lambda: defaultdict(list))
    try:
        for path in args.paths:
            (read_quality if path.endswith(".json") else read_log)(path, panels)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"cannot read {path}: {error}")
    if not panels:
        parser.error("there is nothing to draw in these files")

    import matplotlib
    matplotlib.use("agg")               # draws into files, so no screen is needed
    from matplotlib import pyplot
    columns = min(3, len(panels))
    shape = math.ceil(len(panels) / columns), columns
    figure, axes = pyplot.subplots(*shape, figsize=(4 * shape[1], 3 * shape[0]), squeeze=False,
                                   layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.remove()
    for axis, ((y, x), runs) in zip(axes.flat, panels.items()):
        for run, points in runs.items():
            axis.plot(*zip(*points), marker="o" if len(points) < 30 else "", label=run, ms=3, lw=1)
        axis.set(xlabel=x, ylabel=y)
        if y.startswith("cFID"):        # it falls by a factor of 100 or more
            axis.set_yscale("log")
        if x in ("minutes", "W"):
            axis.set_xscale("log")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize="small")
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
