"""Data in, pictures out: the code that all the scripts share."""

import contextlib
import glob
import hashlib
import random
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import datasets, utils
from torchvision.transforms import functional as TF

DOWNLOADS = {   # the class that downloads and reads a data set, and the place of its files
    "mnist": (datasets.MNIST, "MNIST/raw/*-ubyte.gz"),
    "fashion-mnist": (datasets.FashionMNIST, "FashionMNIST/raw/*-ubyte.gz"),
    "cifar10": (datasets.CIFAR10, "cifar-10-python.tar.gz"),
}


def load_images(data, data_dir="data", *, train=True, classes=None, image_size=0, channels=0,
                device="cpu"):
    """Return images (N, C, H, W) as uint8, labels (N,) as int64, and the names of the classes.

    data: "mnist", "fashion-mnist" or "cifar10", which are downloaded into `data_dir`; "strokes",
        which is drawn; or a folder that holds images or one sub-folder of images for each class.
    train: False returns the images that are held back from training: the test images of a
        downloaded set, or a fixed tenth of strokes and of each class of a folder.
    classes: names or numbers of the classes to keep; their labels become 0, 1, … in this order.
    image_size, channels: 0 keeps those of the data. 1 channel is grey, 3 are RGB. Oblong images are
        cropped around their centre. If a folder's images are oblong or differ in size, 0 means 64.
    Raises an OSError with a one-line message if the images cannot be found or read.
    """
    notes = []
    if data in DOWNLOADS:
        images, labels, names = _load_torchvision(data, data_dir, train)
    elif data == "strokes":
        images, labels, _, _ = (x[:18_000] if train else x[18_000:] for x in strokes(20_000))
        names = "zero one two three four five six seven eight nine".split()     # as in MNIST
    else:
        paths, labels, names, all_paths, notes = _list_folder(data, train)

    known = [*names, *map(str, range(len(names)))]  # names first: folders may be called 1, 2, 3
    for name in classes or names:
        if str(name) not in known:
            raise OSError(f"--classes {name}: not one of {', '.join(names)}. {' '.join(notes)}")
    keep = list(dict.fromkeys(known.index(str(name)) % len(names) for name in classes or names))
    renumber = torch.tensor([keep.index(i) if i in keep else -1 for i in range(len(names))])
    rows = (renumber[labels] >= 0).nonzero().flatten()
    labels, names = renumber[labels[rows]], [names[i] for i in keep]

    if data in DOWNLOADS or data == "strokes":
        images = images[rows]
        if channels == 1:
            images = TF.rgb_to_grayscale(images)
        images = images.expand(-1, channels or -1, -1, -1)      # grey to RGB; -1 changes nothing
        if image_size:
            parts = images.split(1000)      # resize makes float32 copies, so do a part at a time
            images = torch.cat([TF.resize(x, [image_size] * 2, antialias=True) for x in parts])
    else:
        paths = [paths[i] for i in rows]
        images, readable, more = _read_files(paths, all_paths, image_size, channels, data_dir)
        labels, notes = labels[readable], notes + more
        if len(images) < (2 if train else 1):   # BatchNorm cannot train on a single image
            raise OSError(f"--data {data}: too few images: a tenth is held back. {' '.join(more)}")
    notes.append("classes: " + ", ".join(f"{i} = {name}" for i, name in enumerate(names)))
    for note in notes if train else []:
        print(note, file=sys.stderr)
    return images.to(device), labels.to(device), names      # whole, so no DataLoader is needed


def default_data(data_dir="data"):
    """Return "mnist", or "strokes" if MNIST is not on disk and cannot be downloaded."""
    try:
        _load_torchvision("mnist", data_dir, train=True)
        return "mnist"
    except OSError as error:
        print(f"Training on the built-in strokes instead of MNIST. {error}", file=sys.stderr)
        return "strokes"


def batches(images, batch_size, labels=None):
    """Yield uint8 images in random order for one epoch, as float batches (B, C, H, W) in [-1, 1].

    With labels (N,), yield pairs of a batch and its labels (B,). A last batch that would be
    shorter is left out. If there are fewer images than `batch_size`, all of them form one batch.
    """
    size = min(batch_size, len(images))
    order = torch.randperm(len(images), device=images.device)
    for rows in order[:len(images) // size * size].split(size):
        real = images.index_select(0, rows).float().div_(127.5).sub_(1)
        yield real if labels is None else (real, labels[rows])


def spread(images, n):
    """Return at most n images, evenly spaced, as the images of a folder are sorted by class."""
    return images[torch.linspace(0, len(images) - 1, min(n, len(images))).round().long()]


def save_grid(images, path, columns=8):
    """Write images (N, C, H, W) in [-1, 1] as one picture with `columns` images in each row."""
    pixels = images.detach().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    grid = utils.make_grid(pixels, nrow=columns)[:images.shape[1]]  # make_grid turns grey into RGB
    TF.to_pil_image(grid).save(path)


def is_picture(path):
    """Return whether Pillow can write a picture with the extension of `path`, such as .png."""
    return Image.registered_extensions().get(Path(path).suffix.lower()) in Image.SAVE


def save_images(images, path, columns=8, labels=None):
    """Write images (N, C, H, W) in [-1, 1] as one grid if `path` is a picture, else as a folder.

    The folder holds 00000.png, … or, with names or numbers as labels, cat_00000.png, …
    Raises an OSError if the folder already has files in it.
    """
    path = Path(path)
    if is_picture(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_grid(images, path, columns)
    else:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):     # a score of the folder would mix the samples of two runs
            raise OSError(f"--out {path}: this folder already has files in it; name a new one")
        for i, image in enumerate(images):
            label = "" if labels is None else f"{labels[i]}_".replace("/", "-")
            save_grid(image[None], path / f"{label}{i:05}.png")
    print(f"wrote {len(images)} images to {path}")


def save_gif(paths, path):
    """Join pictures into a looping GIF that shows each for 0.25 seconds and the last one for 2."""
    first, *rest = [Image.open(p).convert("RGB").quantize(64) for p in paths]
    first.save(path, save_all=True, append_images=rest, loop=0,
               duration=[250] * len(rest) + [2000])


def _load_torchvision(name, data_dir, train):
    """Return the images, labels and class names of a data set; download it if it is not there."""
    make, files = DOWNLOADS[name]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)        # seconds; without it a dead connection hangs for ever
    try:
        with contextlib.redirect_stdout(None):      # it prints every mirror that it tries
            dataset = make(data_dir, train, download=True)
    except Exception as error:          # no network, a full disk, a damaged file, …
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise OSError(f"--data {name}: this data set is not on disk and cannot be downloaded "
                      f"({reason}). Put its files at {Path(data_dir, files)} and delete damaged "
                      "ones, or use --data strokes") from error
    finally:
        socket.setdefaulttimeout(timeout)
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    names = [name.split(" - ")[-1] for name in dataset.classes]     # MNIST has "0 - zero", …
    return images, torch.as_tensor(dataset.targets), names


def _list_folder(folder, train):
    """Return the paths, labels and class names of one part, all paths, and notes to print."""
    known = {e for e, kind in Image.registered_extensions().items() if kind in (*Image.OPEN, "MPO")}
    groups, others, flat = {}, [], "(no sub-folders)"       # groups: class name to files
    for path in map(Path, glob.iglob(f"{glob.escape(str(Path(folder)))}/**/*", recursive=True)):
        if path.suffix.lower() in known and path.is_file():     # glob leaves out hidden ones
            name, *rest = path.relative_to(folder).parts
            groups.setdefault(name if rest else flat, []).append(path)
        elif not path.is_dir():
            others.append(path)
    names, parts, notes = [], [], [f"left out {len(others)} other files: {p}" for p in others[:1]]
    padded = {name: re.sub(r"(?<![.\d])\d+", lambda n: n[0].zfill(20), name) for name in groups}
    for name in sorted(groups, key=lambda name: (padded[name], name)):     # 2 before 10
        files = sorted(groups[name], key=str)
        random.Random(0).shuffle(files)     # so that the same tenth is held back in every run
        held = max(1, len(files) // 10) if len(files) > 1 else 0
        if all(isinstance(_open(path), Exception) for path in files[held:]):
            notes.append(f"left out {name}: none of its files can be read: {_open(files[held])}")
            continue
        names.append(name)
        parts.append(files[held:] if train else files[:held])
    if not names:
        raise OSError("; ".join([f"--data {folder}: this is neither a folder of images nor one of "
                                 f"{', '.join(DOWNLOADS)} and strokes", *notes]))
    if flat in names and len(names) > 1:
        raise OSError(f"--data {folder}: there are images beside its sub-folders; move them away")
    splits = [s for s in names if re.fullmatch("(train|test)(ing)?|val(id(ation)?)?", s.lower())]
    if len(splits) > 1 or splits == names:
        part = min(splits, key=lambda name: not name.lower().startswith("train"))
        notes.append("warning: the sub-folders count as classes; if they are parts of a data set, "
                     f"use --data {Path(folder, part)}")
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return list(chain(*parts)), labels, names, list(chain(*groups.values())), notes


def _open(path):
    """Return an image, upright, in mode L, RGB or (above 8 bits) F, or the error that it raises."""
    try:
        with Image.open(path) as image:         # the first of several pages or frames
            image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":               # above 8 bits; NaN and infinity become 0
            return Image.fromarray(np.nan_to_num(np.asarray(image, "f4"), posinf=0, neginf=0))
        if image.mode[-1] in "Aa" or "transparency" in image.info:      # A is alpha
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "L" else image.convert("RGB")
    except Exception as error:
        return error


def _read_files(paths, all_paths, side, channels, data_dir):
    """Return images (N, C, side, side), uint8, a mask of the readable paths, and notes to print."""
    def header(path):                   # returns None if the file cannot be opened
        with contextlib.suppress(Exception), Image.open(path) as image:
            span = _open(path).getextrema() if image.mode[0] in "IF" else None
            return image.size, image.mode, getattr(image, "is_animated", False), span

    def read(path):                     # side, channels, black and scale are set below
        image = _open(path)
        if isinstance(image, Exception):
            return image
        if image.mode == "F":           # + 0.5, because convert rounds down
            image = image.point(lambda value: value * scale + (0.5 - black * scale)).convert("L")
        image = image.convert("L" if channels == 1 else "RGB")
        return TF.pil_to_tensor(ImageOps.fit(image, (side, side)))

    files = [(str(p.absolute()), p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in all_paths]
    key = hashlib.sha256(repr((files, paths, side, channels)).encode()).hexdigest()[:16]
    cache = Path(data_dir, "cache", f"{key}.pt")
    with contextlib.suppress(Exception):        # if it is not there or damaged, decode again
        return torch.load(cache, weights_only=True)
    with ThreadPoolExecutor() as pool:
        headers = list(filter(None, pool.map(header, paths)))
        sides = {n for size, *_ in headers for n in size}
        side = side or (sides.pop() if len(sides) == 1 else 64)
        channels = channels or (1 if {Image.getmodebase(x[1]) for x in headers} == {"L"} else 3)
        n = sum(animated for _, _, animated, _ in headers)
        notes = [f"files of which only the first page or frame is used: {n}"] if n else []
        if any(span for *_, span in headers):   # one scale for the whole folder
            spans = [span for *_, span in filter(None, pool.map(header, all_paths))]
            lowest, highest = zip((0, 0), *filter(None, spans))
            black, white = min(lowest), max(highest)
            if None in spans and white >= 2:    # there are 8-bit files: use all of 255, 1023, …
                white = 2 ** max(8, int(white).bit_length()) - 1
            scale = 255 / ((white - black) or 1)
            notes.append(f"pixel values from {black:g} to {white:g} are scaled to 0 to 255")
        images = torch.empty(len(paths), channels, side, side, dtype=torch.uint8)
        readable, bad = torch.empty(len(paths), dtype=torch.bool), []
        for i, result in enumerate(pool.map(read, paths)):
            readable[i] = torch.is_tensor(result)
            if readable[i]:
                images[i] = result
            else:                       # one reason is enough
                bad.append(str(paths[i]) if bad else f"{paths[i]} ({result})")
            if i % 5000 == 4999:
                print(f"decoded {i + 1:,} of {len(paths):,} images", file=sys.stderr)
    if bad:
        notes.append("left out, unreadable: " + ", ".join(bad[:10]) + " …" * (len(bad) > 10))
        images = images[readable]
    with contextlib.suppress(Exception):        # if the disk is full, the next run decodes again
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save((images, readable, notes), cache)
    return images, readable, notes


GLYPHS = (      # the curves of each digit: points (x, y); x grows to the right, y downwards
    [[(5, 0), (1.5, 2.5), (1.5, 7.5), (5, 10), (8.5, 7.5), (8.5, 2.5), (5, 0)]],
    [[(5, 0), (5, 5), (5, 10)]],
    [[(1, 2), (4, 0), (8, 2), (6, 6), (1, 10)], [(1, 10), (5, 9), (9, 10)]],
    [[(2, 1), (6, 0), (8, 2), (4, 5)], [(4, 5), (8, 6), (8, 9), (5, 10), (1, 9)]],
    [[(3, 0), (1, 6)], [(1, 6), (5, 6), (9, 5)], [(7, 1), (6, 10)]],
    [[(8, 0), (3, 0)], [(3, 0), (2, 4)], [(2, 4), (6, 4), (8, 7), (5, 10), (1, 9)]],
    [[(7, 0), (3, 4), (2, 8), (5, 10), (8, 8), (6, 5), (2, 7)]],
    [[(1, 1), (5, 0), (9, 0)], [(9, 0), (6, 5), (4, 10)]],
    [[(8, 2), (5, 0), (2, 2), (5, 5), (8, 8), (5, 10), (2, 8), (5, 5), (8, 2)]],
    [[(8, 2), (5, 0), (2, 2), (4, 5), (8, 2)], [(8, 2), (8, 6), (6, 10)]],
)


def strokes(n, seed=0):
    """Draw n handwritten-looking digits: images (n, 1, 28, 28), uint8; labels, slant, width (n,).

    The slant is a shear from -0.2 to 0.6, positive to the right. The pen is 1.4 to 3.6 pixels wide.
    Both are uniform and independent of the digit, so one can test whether a model has found them.
    """
    gen = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=gen)
    labels = torch.randint(10, (n,), generator=gen)
    slant, width = uniform(-0.2, 0.6), uniform(1.4, 3.6)
    points = torch.empty(n, 72, 2)      # on the path of the pen, at most 2.5 pixels apart
    for digit, curves in enumerate(GLYPHS):
        rows = (labels == digit).nonzero().flatten()
        splines = []        # one matrix for each curve: its k points -> many along its spline
        for k in map(len, curves):
            t = torch.linspace(0, k - 1, 72 // len(curves))[:, None]
            i = t.long().clamp(max=k - 2)
            u = t - i
            weights = torch.cat([-u + 2*u**2 - u**3, 2 - 5*u**2 + 3*u**3,       # Catmull-Rom
                                 u + 4*u**2 - 3*u**3, u**3 - u**2], 1) / 2
            near = (i + torch.arange(-1, 3)).clamp(0, k - 1)
            splines.append(torch.zeros(len(t), k).scatter_add(1, near, weights))
        knots = torch.tensor(sum(curves, [])) / 10 - 0.5
        twin = (knots[:, None] == knots).all(-1).int().argmax(1)    # joined strokes stay joined
        moved = knots + 0.05 * torch.randn(len(rows), *knots.shape, generator=gen)[:, twin]
        points[rows] = torch.block_diag(*splines) @ moved
    x, y = (points * uniform(0.85, 1.1, 1, 2) * torch.tensor([11.5, 17.5])).unbind(-1)
    x, angle = x - slant[:, None] * y, uniform(-0.15, 0.15, 1)
    x, y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    points = torch.stack([x, y], -1) + 13.5 + uniform(-1, 1, 1, 2)
    pixels = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)).flip(1)   # (784, 2): x, y
    distance = torch.cat([torch.cdist(pixels, part).amin(-1) for part in points.split(250)])
    ink = (width[:, None] / 2 + 0.5 - distance).clamp(0, 1)     # an edge that is one pixel soft
    return (255 * ink).byte().view(n, 1, 28, 28), labels, slant, width
