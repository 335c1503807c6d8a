"""Data in, pictures out: all that the six scripts share.

The data sets are small (as uint8, MNIST takes 47 MB and CIFAR-10 154 MB), so each lives on the
training device whole: a DataLoader with workers would cost more than training networks this small.
"""

import contextlib
import hashlib
import io
import os
import random
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoResult
from pathlib import Path

import torch


class DataError(OSError):
    """The data asked for cannot be had; the message is one line that names the flag and a remedy."""


def load_images(data, data_dir="data", *, train=True, classes=None, image_size=0, channels=0, device="cpu"):
    """Load a whole data set: images (N, C, H, W), uint8, and labels (N,), int64, both on `device`.

    data: "mnist", "fashion-mnist" or "cifar10" (downloaded into `data_dir`), "strokes", or a folder
        of images, flat (every label 0) or with a sub-folder a class (decoded once, then cached).
    train: False gives what is held back from training: the test images of the downloaded sets, a
        fixed tenth of strokes and of each class of a folder.
    classes: names or numbers of the classes to keep, renumbered 0, 1, … in this order; None: all.
    image_size, channels: 0 keeps those of the data (folders of mixed or oblong sizes: 64). Oblong
        images are cropped to their centre. 1 channel is grey, 3 are RGB; transparency is dropped.
    Raises DataError.
    """
    if data in ("mnist", "fashion-mnist", "cifar10"):
        images, labels, names = _load_torchvision(data, data_dir, train)
    elif data == "strokes":
        images, labels = strokes(20_000)[:2]
        split = slice(None, len(images) * 9 // 10) if train else slice(len(images) * 9 // 10, None)
        images, labels, names = images[split], labels[split], "0123456789"
    elif os.path.isdir(data):
        paths, labels, names = _list_folder(data, train)
    else:
        raise DataError(f"--data {data}: no such folder, nor mnist, fashion-mnist, cifar10 or strokes")

    rows, labels = _pick_classes(labels, names, classes)
    if os.path.isdir(data):
        images, read = _cached(_decode, [paths[i] for i in rows], image_size, channels, data_dir)
        labels = labels[read]
    else:
        images = _convert(images[rows], image_size, channels)
    if not len(images):
        raise DataError(f"--data {data}: no image in it can be read")
    try:
        return images.to(device), labels.to(device)
    except RuntimeError as error:       # what every kind of device raises when it is full
        raise DataError(f"--data {data}: {images.numel() / 1e9:.1f} GB do not fit on {device}; "
                        "take a smaller --image-size or fewer --classes") from error


def default_data(data_dir="data"):
    """The data set of a run without --data: "mnist", or where it cannot be had, "strokes"."""
    try:
        _load_torchvision("mnist", data_dir, train=True)
        return "mnist"
    except DataError as error:
        print(f"{error}. Training on the built-in strokes.", file=sys.stderr)
        return "strokes"


def batches(images, batch_size):
    """One pass over uint8 images in random order: float batches (B, C, H, W) in [-1, 1].

    A last, shorter batch is left out; fewer images than `batch_size` make one batch.
    """
    size = min(batch_size, len(images))
    order = torch.randperm(len(images), device=images.device)
    for start in range(0, len(images) - size + 1, size):
        yield images[order[start:start + size]].float() / 127.5 - 1


# ---- pictures ----

def save_grid(images, path, columns=8):
    """Write images (N, C, H, W) in [-1, 1] as one PNG with `columns` to a row; one image alone, as it is."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid
    pixels = images.detach().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    to_pil_image(make_grid(pixels, nrow=columns)[:images.shape[1]]).save(path)  # grey: make_grid gives RGB


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
        with contextlib.redirect_stdout(io.StringIO()):     # torchvision prints each mirror it tries
            dataset = _unless_stuck(lambda: make(data_dir, train=train, download=True), Path(data_dir))
    except Exception as error:          # no network, a full disk, a damaged file: the remedy is the same
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"--data {name}: neither on disk nor to be downloaded ({reason}); put its files at "
                        f"{Path(data_dir, files)} or use --data strokes") from error
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(dataset.targets), [c.split(" - ")[-1] for c in dataset.classes]


def _unless_stuck(call, folder, seconds=10):
    """Return call(); give up once `folder` has not grown for so many seconds.

    In a thread, because no time-out of urllib covers the look-up of a host's name.
    """
    def run():
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    def size():
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

    future, now = Future(), size()
    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            return future.result(seconds)
        except NoResult:
            before, now = now, size()
            if now == before:
                raise TimeoutError(f"no answer in {seconds} s") from None


def _pick_classes(labels, names, classes):
    """Rows of the classes asked for, and their labels renumbered; see load_images."""
    if not classes:
        return torch.arange(len(labels)), labels
    names = list(names)
    for name in classes:
        if name not in names and not (name.isdecimal() and int(name) < len(names)):
            raise DataError(f"--classes {name}: no such class; there are {', '.join(names)}")
    # names before numbers, for folders that are called 1, 2, 3
    keep = list(dict.fromkeys(names.index(c) if c in names else int(c) for c in classes))
    rows = torch.isin(labels, torch.tensor(keep)).nonzero().flatten()
    return rows, torch.tensor([keep.index(label) for label in labels[rows].tolist()], dtype=torch.long)


def _convert(images, side, channels):
    """Images (N, C, H, H) with another side and number of channels (0: as they are)."""
    from torchvision.transforms import functional as TF
    side, channels = side or images.shape[-1], channels or images.shape[1]
    _check_memory(len(images), channels, side)
    if channels < images.shape[1]:
        images = TF.rgb_to_grayscale(images)
    elif channels > images.shape[1]:
        images = images.repeat(1, channels, 1, 1)
    if side != images.shape[-1]:        # in pieces, as it works in float32
        images = torch.cat([TF.resize(part, [side, side], antialias=True) for part in images.split(1000)])
    return images


def _check_memory(n, channels, side):
    size = n * channels * side * side
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
    if size > memory:
        raise DataError(f"--image-size {side}: {n:,} images of {channels}×{side}×{side} need {size / 1e9:.1f} "
                        f"GB, more than the {memory / 1e9:.1f} GB of this machine")


# ---- folders of images ----

def _list_folder(folder, train):
    """Paths, labels and class names of the training or the held-back images of a folder."""
    from torchvision.datasets.folder import IMG_EXTENSIONS
    groups = {}                         # class: its files; class "" where they lie in the folder itself
    for root, _, files in os.walk(folder, followlinks=True):
        found = [f"{root}/{f}" for f in files if f.lower().endswith(IMG_EXTENSIONS) and f[0] != "."]
        if found:
            groups.setdefault((*Path(root).relative_to(folder).parts, "")[0], []).extend(found)
    if not groups:
        raise DataError(f"--data {folder}: no image files in it ({' '.join(IMG_EXTENSIONS)})")
    if "" in groups and len(groups) > 1:
        raise DataError(f"--data {folder}: has images beside sub-folders of images; move them into one")
    paths, labels, names = [], [], sorted(groups)
    for label, name in enumerate(names):
        files = sorted(groups[name])
        random.Random(0).shuffle(files)
        held = max(1, len(files) // 10) if len(files) > 1 else 0
        files = files[held:] if train else files[:held]
        paths += files
        labels += [label] * len(files)
    return paths, torch.tensor(labels, dtype=torch.long), names


def _cached(decode, paths, side, channels, data_dir):
    """decode(paths, side, channels), from a file in `data_dir` if that was done before."""
    stats = [(os.path.abspath(p), os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths]
    key = hashlib.sha256(repr((stats, side, channels)).encode()).hexdigest()[:16]
    cache = Path(data_dir, "cache", f"{key}.pt")
    with contextlib.suppress(Exception):                    # not there, or damaged
        return torch.load(cache, weights_only=True)
    result = decode(paths, side, channels)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(result, f"{cache}.tmp")
        os.replace(f"{cache}.tmp", cache)
    except (OSError, RuntimeError) as error:
        print(f"not cached, the next start will decode again ({error})", file=sys.stderr)
    return result


def _decode(paths, side, channels):
    """Images (N, C, side, side) of those files that can be read, and the row of each in `paths`."""
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    def read(path, what):
        try:
            with Image.open(path) as image:
                return what(image)
        except Exception:               # Pillow raises more than OSError on damaged files
            return None

    def header(image):
        return image.size, image.mode.startswith(("1", "L", "I"))

    def pixels(image):
        if image.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
            image = image.point(lambda v: v * (1 / 256)).convert("L")
        image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        return pil_to_tensor(ImageOps.fit(image, (side, side)))

    with ThreadPoolExecutor() as pool:
        headers = [h for h in pool.map(lambda p: read(p, header), paths) if h]
        sizes = {size for size, _ in headers}
        width, height = sizes.pop() if len(sizes) == 1 else (64, 64)
        side = side or (width if width == height else 64)
        channels = channels or (1 if all(grey for _, grey in headers) else 3)
        _check_memory(len(paths), channels, side)
        images, rows, told = torch.empty(len(paths), channels, side, side, dtype=torch.uint8), [], time.time()
        for i, image in enumerate(pool.map(lambda p: read(p, pixels), paths)):
            if image is not None:
                images[len(rows)] = image
                rows.append(i)
            if time.time() > told + 3:
                told = time.time()
                print(f"decoding: {i:,} of {len(paths):,} images", file=sys.stderr)
    bad = [paths[i] for i in sorted(set(range(len(paths))) - set(rows))]
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        print(f"skipped {len(bad)} that cannot be read: {', '.join(bad[:10])}{more}", file=sys.stderr)
    return images[:len(rows)].clone(), torch.tensor(rows, dtype=torch.long)


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
    weights = (-u + 2 * u**2 - u**3, 2 - 5 * u**2 + 3 * u**3, u + 4 * u**2 - 3 * u**3, u**3 - u**2)
    matrix = torch.zeros(n, k)
    for offset, weight in zip((-1, 0, 1, 2), weights):      # beyond the ends: the end again
        matrix[torch.arange(n), (i + offset).clamp(0, k - 1)] += weight / 2
    return matrix


def strokes(n, seed=0):
    """Draw n handwritten-looking digits: images (n, 1, 28, 28) uint8, labels, slant, width (n,) each.

    slant is the horizontal shear, -0.2 … 0.6 (positive leans right), width the pen's in pixels,
    1.4 … 3.6: uniform, and independent of the digit, so that what a model makes of them can be checked.
    """
    gen = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=gen)

    labels = torch.randint(10, (n,), generator=gen)
    slant, width = uniform(-0.2, 0.6), uniform(1.4, 3.6)
    points = torch.empty(n, 72, 2)                          # of the pen's path, half a pixel apart
    for digit, glyph in enumerate(GLYPHS):
        rows = (labels == digit).nonzero().flatten()
        curves = [[[float(v) for v in p.split(",")] for p in s.split()] for s in glyph.split("|")]
        knots = torch.tensor(sum(curves, [])) / 10 - 0.5
        # a stroke may begin where another ends: points that coincide move together
        twin = (knots[:, None] == knots).all(-1).int().argmax(1)
        moved = knots + 0.05 * torch.randn(len(rows), *knots.shape, generator=gen)[:, twin]
        points[rows] = torch.block_diag(*(_spline(len(c), 72 // len(curves)) for c in curves)) @ moved
    x, y = (points * uniform(0.85, 1.1, 1, 2) * torch.tensor([11.5, 17.5])).unbind(-1)
    x, angle = x - slant[:, None] * y, uniform(-0.15, 0.15, 1)
    x, y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    points = torch.stack([x, y], -1) + 13.5 + uniform(-1, 1, 1, 2)

    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    pixels = torch.stack([column, row], -1).view(1, 784, 2)
    images = torch.empty(n, 784, dtype=torch.uint8)
    for part in torch.arange(n).split(250):                 # bounds the distances to 57 MB
        distance = torch.cdist(pixels.expand(len(part), -1, -1), points[part]).amin(-1)
        ink = (width[part, None] / 2 + 0.5 - distance).clamp(0, 1)      # an edge one pixel soft
        images[part] = (255 * ink).byte()
    return images.view(n, 1, 28, 28), labels, slant, width
