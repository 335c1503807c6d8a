"""Draw the curves of runs. This needs matplotlib, which is in requirements-dev.txt.

    python extras/plot.py out/gan_mlp/log.csv out/dcgan/log.csv     # every column, over epochs
    python benchmarks/quality.py out/*/ckpt_*.pt --json > quality.json
    python extras/plot.py quality.json --out quality.png            # cFID, over epochs and minutes

Each quantity gets a panel, and each run a line, which is named after the folder of the run. For
cFID over epochs, train with --keep. For a Wasserstein script, there is also a panel of the cFID of
G against W, with a point for each of up to 12 epochs. (benchmarks/README.md explains cFID and W.)
"""

import argparse
import csv
import json
import math
from collections import defaultdict
from pathlib import Path


def read_log(path, panels):
    """Add the columns of a log.csv to panels: {(y, x): {folder of the run: [points (x, y)]}}."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    steps = int(rows[-1]["step"]) / int(rows[-1]["epoch"])      # a log ends with a whole epoch
    for row in rows:
        x = int(row["step"]) / steps    # some lines are within an epoch
        for name, value in row.items():
            if name not in ("epoch", "step", "minutes") and value:      # most rows have no W_val
                panels[name, "epoch"][Path(path).resolve().parent].append((x, float(value)))


def read_quality(path, panels):
    """Add the results of `quality.py --json` to panels."""
    for result in sorted(json.loads(Path(path).read_text()), key=lambda r: r.get("epochs", 0)):
        run = Path(result["path"]).resolve().parent
        if "cFID" in result and "epochs" in result:     # not a folder of PNGs
            for x in "epochs", "minutes":
                panels["cFID", x][run].append((result[x], result["cFID"]))
        if "W_cFID" in result:          # the last checkpoint has all epochs
            panels["cFID of G", "W"][run] = [(W, cfid) for _, W, cfid in result["W_cFID"]]


def draw(panels):
    """Return a figure of the panels. A run has the same colour in all of them."""
    import matplotlib
    matplotlib.use("agg")               # draws into files, so no screen is needed
    from matplotlib import pyplot
    runs = list(dict.fromkeys(run for lines in panels.values() for run in lines))
    columns = min(3, len(panels))
    shape = math.ceil(len(panels) / columns), columns
    figure, axes = pyplot.subplots(*shape, figsize=(4 * shape[1], 3 * shape[0]), squeeze=False,
                                   layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.remove()
    for axis, ((y, x), lines) in zip(axes.flat, panels.items()):
        for run, points in lines.items():
            axis.plot(*zip(*points), marker="o" if len(points) < 30 else "", ms=3, lw=1,
                      label=run.name, color=f"C{runs.index(run)}")
        axis.set(xlabel=x, ylabel=y)
        if y.startswith("cFID"):        # it falls by a factor of 100 or more
            axis.set_yscale("log")
        if x in ("minutes", "W"):
            axis.set_xscale("log", nonpositive="mask")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(usage="python extras/plot.py PATH [PATH ...] [--out PICTURE]")
    parser.add_argument("paths", nargs="+", help="log.csv files, or the JSON of quality.py")
    parser.add_argument("--out", default="curves.png", help="the picture (default: curves.png)")
    args = parser.parse_args(argv)
    panels = defaultdict(lambda: defaultdict(list))
    for path in args.paths:
        try:
            (read_quality if path.endswith(".json") else read_log)(path, panels)
        except Exception as error:      # it is missing, or neither of the two kinds of file
            parser.error(f"cannot read {path}: {error!r}")
    if not panels:
        parser.error("there is nothing to draw in these files")
    # A panel in which each run has a single point shows no curve.
    curves = {key: lines for key, lines in panels.items() if max(map(len, lines.values())) > 1}
    try:
        draw(curves or panels).savefig(args.out, dpi=110)
    except (OSError, ValueError) as error:      # no such folder, or no picture's name
        parser.error(f"cannot write {args.out}: {error}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
