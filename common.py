"""Data in, pictures out: all that the scripts share.

The data sets are small (as uint8, MNIST takes 47 MB, CIFAR-10 154 MB), so each lives whole on the
training device: a DataLoader with workers would cost more than training networks of this size.
"""

import contextlib
import hashlib
import io
import math
import os
import random
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoResult     # the built-in one from 3.11 on
from pathlib import Path

import torch


class DataError(OSError):
    """The data asked for cannot be had; one line that names the flag and a remedy."""


def load_images(data, data_dir="data", *, train=True, classes=None, image_size=0, channels=0,
                device="cpu"):
    """Load a whole data set: images (N, C, H, W), uint8, and labels (N,), int64, both on `device`.

    data: "mnist", "fashion-mnist" or "cifar10" (downloaded into `data_dir`), "strokes", or a folder
        of images, flat (all labels 0) or with a sub-folder a class (decoded once, then cached).
    train: False gives the images held back from training: the test images of the downloaded sets,
        a fixed tenth of strokes and of each class of a folder.
    classes: names or numbers of those to keep, renumbered 0, 1, … in this order; None: all.
    image_size, channels: 0 keeps those of the data; a folder of mixed or oblong sizes gets 64.
        Oblong images are cropped to their centre. 1 channel is grey, 3 are RGB; no transparency.
    Raises DataError.
    """
    paths = None
    if data in ("mnist", "fashion-mnist", "cifar10"):
        images, labels, names = _load_torchvision(data, data_dir, train)
    elif data == "strokes":
        images, labels, _, _ = strokes(20_000)
        names = "zero one two three four five six seven eight nine".split()     # as in MNIST
        cut = len(images) * 9 // 10
        images, labels = (x[:cut] if train else x[cut:] for x in (images, labels))
    elif os.path.isdir(data):
        paths, labels, names = _list_folder(data, train)
    else:
        raise DataError(f"--data {data}: no folder, nor mnist, fashion-mnist, cifar10 or strokes")

    rows, labels = _pick_classes(labels, names, classes)
    if paths is not None:
        images, read = _read_files([paths[i] for i in rows], image_size, channels, data_dir)
        labels = labels[read]
    else:
        images = _convert(images[rows], image_size, channels)
    if not len(images):
        raise DataError(f"--data {data}: no image in it can be read" if train else
                        f"--data {data}: no image of the tenth held back can be read; add some")
    try:
        return images.to(device), labels.to(device)
    except RuntimeError as error:       # what all kinds of devices raise when they are full
        size, reason = images.numel() / 1e9, str(error).splitlines()[0]
        raise DataError(f"--data {data}: {size:.1f} GB do not fit on {device}, take a smaller "
                        f"--image-size ({reason})") from error


def default_data(data_dir="data"):
    """The data set of a run without --data: "mnist", or where it cannot be had "strokes"."""
    try:
        _load_torchvision("mnist", data_dir, train=True)
        return "mnist"
    except DataError as error:
        print(f"Training on the built-in strokes, for want of MNIST ({error})", file=sys.stderr)
        return "strokes"


def batches(images, batch_size, labels=None):
    """One pass over uint8 images in random order: float batches (B, C, H, W) in [-1, 1].

    With labels (N,): pairs of a batch and its labels (B,). A last, shorter batch is left out; fewer
    images than `batch_size` make one batch.
    """
    size = min(batch_size, len(images))
    order = torch.randperm(len(images), device=images.device)
    for start in range(0, len(images) - size + 1, size):
        rows = order[start:start + size]
        real = images.index_select(0, rows).float().div_(127.5).sub_(1)
        yield real if labels is None else (real, labels[rows])


def spread(images, n):
    """At most n of the images, evenly over all: those of a folder are sorted by class."""
    return images[torch.linspace(0, len(images) - 1, min(n, len(images))).round().long()]


# ---- pictures ----

def save_grid(images, path, columns=8):
    """Write images (N, C, H, W) in [-1, 1] as one PNG, `columns` to a row; one alone as it is."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid
    pixels = images.detach().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    grid = make_grid(pixels, nrow=columns)[:images.shape[1]]    # of grey images it makes RGB
    to_pil_image(grid).save(path)


def save_gif(paths, path, seconds=0.25):
    """Join pictures into an endless GIF, each shown for so many seconds and the last for 2."""
    from PIL import Image
    first, *rest = [Image.open(p).convert("RGB").quantize(64) for p in paths]
    durations = [int(1000 * seconds)] * len(rest) + [2000]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)


# ---- data sets of torchvision ----

def _load_torchvision(name, data_dir, train):
    """Images, labels and class names of a torchvision data set, downloaded unless it is on disk."""
    from torchvision import datasets
    make, files = {"mnist": (datasets.MNIST, "MNIST/raw/*-ubyte.gz"),
                   "fashion-mnist": (datasets.FashionMNIST, "FashionMNIST/raw/*-ubyte.gz"),
                   "cifar10": (datasets.CIFAR10, "cifar-10-python.tar.gz")}[name]
    try:
        dataset = make(data_dir, train)
    except Exception:                   # not there, or damaged
        try:
            with contextlib.redirect_stdout(io.StringIO()):     # it prints all mirrors it tries
                dataset = _unless_stuck(lambda: make(data_dir, train, download=True), data_dir)
        except Exception as error:      # no network, a full disk, …: the remedy is the same
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise DataError(f"--data {name}: not on disk, no download ({reason}); put its files at "
                            f"{Path(data_dir, files)}, delete damaged ones, or use --data strokes"
                            ) from error
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    names = [c.split(" - ")[-1] for c in dataset.classes]       # MNIST's are "0 - zero", …
    return images, torch.as_tensor(dataset.targets), names


def _unless_stuck(call, folder, seconds=10):
    """Return call(); TimeoutError once `folder` has not grown for so many seconds.

    In a thread, because no time-out of urllib covers the look-up of a host's name.
    """
    def run():
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    def size():
        return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())

    future, now, quiet = Future(), size(), 0
    threading.Thread(target=run, daemon=True).start()
    while quiet < 2:
        try:
            return future.result(seconds / 2)
        except NoResult:
            before, now = now, size()
            quiet = quiet + 1 if now == before else 0
            print(f"waiting for a download: {now / 1e6:.1f} MB in {folder}", file=sys.stderr)
    raise TimeoutError(f"no answer in {seconds} s")


def _pick_classes(labels, names, classes):
    """Rows of the classes asked for, and their labels renumbered; see load_images."""
    if not classes:
        return torch.arange(len(labels)), labels
    names = list(names)
    for name in classes:
        if name not in names and name not in map(str, range(len(names))):
            raise DataError(f"--classes {name}: no such class; there are {', '.join(names)}")
    # names before numbers, for folders that are called 1, 2, 3
    keep = list(dict.fromkeys(names.index(c) if c in names else int(c) for c in classes))
    rows = torch.isin(labels, torch.tensor(keep)).nonzero().flatten()
    return rows, (labels[rows, None] == torch.tensor(keep)).int().argmax(1)


def _convert(images, side, channels):
    """Images (N, C, H, H) with another side and number of channels (0: as they are)."""
    from torchvision.transforms import functional as TF
    side, channels = side or images.shape[-1], channels or images.shape[1]
    _check_memory(len(images), channels, side)
    if channels < images.shape[1]:
        images = TF.rgb_to_grayscale(images)
    elif channels > images.shape[1]:
        images = images.repeat(1, channels, 1, 1)
    if side != images.shape[-1]:        # in parts, as it takes float32 inside
        parts = [TF.resize(part, [side, side], antialias=True) for part in images.split(1000)]
        images = torch.cat(parts)
    return images


def _check_memory(n, channels, side):
    """Refuse what cannot fit, before the system kills the process for it."""
    size = n * channels * side * side
    memory = math.inf
    if hasattr(os, "sysconf"):          # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise DataError(f"--image-size {side}: {n:,} images of {channels}×{side}×{side} need "
                        f"{size / 1e9:.1f} GB; this machine has {memory / 1e9:.1f} GB")


# ---- folders of images ----

def _list_folder(folder, train):
    """Paths, labels and class names of the training or the held-back images of a folder."""
    from torchvision.datasets.folder import IMG_EXTENSIONS
    groups = {}                         # files by sub-folder of `folder`; "." is itself
    seen = set()
    for root, dirs, files in os.walk(folder, followlinks=True):
        dirs[:] = [d for d in dirs if d[0] != "."]
        if os.path.realpath(root) in seen:      # links that go round in circles
            dirs.clear()
            continue
        seen.add(os.path.realpath(root))
        found = [f"{root}/{f}" for f in files if f.lower().endswith(IMG_EXTENSIONS) and f[0] != "."]
        if found:
            groups.setdefault(os.path.relpath(root, folder).split(os.sep)[0], []).extend(found)
    if not groups:
        raise DataError(f"--data {folder}: no image files in it ({' '.join(IMG_EXTENSIONS)})")
    if "." in groups and len(groups) > 1:
        raise DataError(f"--data {folder}: has images beside sub-folders of images; move them")
    paths, labels, names = [], [], sorted(groups)
    for label, name in enumerate(names):
        files = sorted(groups[name])
        random.Random(0).shuffle(files)
        held = max(1, len(files) // 10) if len(files) > 1 else 0
        files = files[held:] if train else files[:held]
        paths += files
        labels += [label] * len(files)
    return paths, torch.tensor(labels, dtype=torch.long), names


def _read_files(paths, side, channels, data_dir):
    """What _decode makes of the files, from a cache in `data_dir` if they are as they were then."""
    def stamp(path):
        try:
            return os.path.abspath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns
        except OSError:                 # a dead link; _decode will name it
            return path

    key = hashlib.sha256(repr((list(map(stamp, paths)), side, channels)).encode()).hexdigest()[:16]
    cache = Path(data_dir, "cache", f"{key}.pt")
    with contextlib.suppress(Exception):        # whatever is wrong with the cache: decode again
        return torch.load(cache, weights_only=True)
    result = _decode(paths, side, channels)
    temporary = f"{cache}.{os.getpid()}.tmp"
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(result, temporary)
        os.replace(temporary, cache)
    except (OSError, RuntimeError) as error:    # RuntimeError: a full disk
        print(f"not cached, so that the next start decodes again: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            os.remove(temporary)
    return result


def _decode(paths, side, channels):
    """Images (N, C, side, side), uint8, of all that can be read, and their rows in `paths`."""
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    def read(path, get):
        try:
            with Image.open(path) as image:
                return get(image)
        except Exception:               # Pillow raises more than OSError on damaged files
            return None

    def header(image):
        return image.size, image.mode.startswith(("1", "L", "I"))       # True: grey

    def pixels(image):
        if image.mode.startswith("I;16") or image.mode == "I" and image.getextrema()[1] > 255:
            # 16 bits, which convert() would clip at 255
            image = image.point(lambda v: v * (1 / 256)).convert("L")
        if image.mode == "F":
            raise ValueError("floating point, of unknown range")
        image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        return pil_to_tensor(ImageOps.fit(image, (side, side)))

    with ThreadPoolExecutor() as pool:
        headers = [h for h in pool.map(lambda path: read(path, header), paths) if h]
        sizes = {size for size, _ in headers}
        width, height = sizes.pop() if len(sizes) == 1 else (64, 64)
        side = side or (width if width == height else 64)
        channels = channels or (1 if all(grey for _, grey in headers) else 3)
        _check_memory(len(paths), channels, side)
        images = torch.empty(len(paths), channels, side, side, dtype=torch.uint8)
        rows, bad, told = [], [], time.time()
        for i, image in enumerate(pool.map(lambda path: read(path, pixels), paths)):
            if image is None:
                bad.append(paths[i])
            else:
                images[len(rows)] = image
                rows.append(i)
            if time.time() > told + 3:
                told = time.time()
                print(f"decoding: {i:,} of {len(paths):,} images", file=sys.stderr)
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        print(f"skipped, cannot be read: {', '.join(bad[:10])}{more}", file=sys.stderr)
        images = images[:len(rows)].clone()     # or the cache would hold the unused rows as well
    return images, torch.tensor(rows, dtype=torch.long)


# ---- the built-in data set ----

# The strokes of each digit: points x,y on a curve; x to the right, y down, 0 to 10.
GLYPHS = (
    "5,0 1.5,2.5 1.5,7.5 5,10 8.5,7.5 8.5,2.5 5,0",
    "5,0 5,5 5,10",
    "1,2 4,0 8,2 6,6 1,10|1,10 5,9 9,10",
    "2,1 6,0 8,2 4,5|4,5 8,6 8,9 5,10 1,9",
    "3,0 1,6|1,6 5,6 9,5|7,1 6,10",
    "8,0 3,0|3,0 2,4|2,4 6,4 8,7 5,10 1,9",
    "7,0 3,4 2,8 5,10 8,8 6,5 2,7",
    "1,1 5,0 9,0|9,0 6,5 4,10",
    "8,2 5,0 2,2 5,5 8,8 5,10 2,8 5,5 8,2",
    "8,2 5,0 2,2 4,5 8,2|8,2 8,6 6,10",
)


def _spline(k, n):
    """(n, k) matrix that takes k points to n points along the Catmull-Rom spline through them."""
    t = torch.linspace(0, k - 1, n)
    i = t.long().clamp(max=k - 2)
    u = t - i
    weights = (-u + 2*u**2 - u**3, 2 - 5*u**2 + 3*u**3, u + 4*u**2 - 3*u**3, u**3 - u**2)
    matrix = torch.zeros(n, k)
    for offset, weight in zip((-1, 0, 1, 2), weights):  # beyond an end: the end again
        matrix[torch.arange(n), (i + offset).clamp(0, k - 1)] += weight / 2
    return matrix


def strokes(n, seed=0):
    """Draw n handwritten-looking digits: images (n, 1, 28, 28), uint8; labels, slant, width (n,).

    slant is the horizontal shear, -0.2 … 0.6 (positive leans right), width the pen's in pixels,
    1.4 … 3.6. Both are uniform and independent of the digit: what a model learned can be checked.
    """
    gen = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=gen)

    labels = torch.randint(10, (n,), generator=gen)
    slant, width = uniform(-0.2, 0.6), uniform(1.4, 3.6)
    points = torch.empty(n, 72, 2)                  # of the pen's path, a pixel apart at most
    for digit, glyph in enumerate(GLYPHS):
        rows = (labels == digit).nonzero().flatten()
        curves = [[[float(v) for v in p.split(",")] for p in curve.split()]
                  for curve in glyph.split("|")]
        splines = [_spline(len(curve), 72 // len(curves)) for curve in curves]
        knots = torch.tensor(sum(curves, [])) / 10 - 0.5
        # a stroke may begin where another ends: points that coincide move together
        twin = (knots[:, None] == knots).all(-1).int().argmax(1)
        moved = knots + 0.05 * torch.randn(len(rows), *knots.shape, generator=gen)[:, twin]
        points[rows] = torch.block_diag(*splines) @ moved
    x, y = (points * uniform(0.85, 1.1, 1, 2) * torch.tensor([11.5, 17.5])).unbind(-1)
    x, angle = x - slant[:, None] * y, uniform(-0.15, 0.15, 1)
    x, y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    points = torch.stack([x, y], -1) + 13.5 + uniform(-1, 1, 1, 2)

    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    pixels = torch.stack([column, row], -1).view(1, 784, 2)
    images = torch.empty(n, 784, dtype=torch.uint8)
    for part in torch.arange(n).split(250):         # keeps the distances at 56 MB
        distance = torch.cdist(pixels.expand(len(part), -1, -1), points[part]).amin(-1)
        ink = (width[part, None] / 2 + 0.5 - distance).clamp(0, 1)  # an edge one pixel soft
        images[part] = (255 * ink).byte()
    return images.view(n, 1, 28, 28), labels, slant, width
