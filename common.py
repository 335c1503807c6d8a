"""Data in, pictures out: the code that all the scripts share."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision import datasets, utils
from torchvision.transforms import functional as TF

DOWNLOADS = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST,
             "cifar10": datasets.CIFAR10}


def load_images(data, data_dir="data", *, train=True, classes=None, image_size=0):
    """Return images (N, C, H, H) as uint8, labels (N,) as int64, and the names of the classes.

    data: "mnist", "fashion-mnist" or "cifar10", which are downloaded into `data_dir`; "digits",
        which are drawn; or a folder that holds images or one sub-folder of images for each class.
    train: False returns the images that are held back from training: the test images of a
        downloaded set, those in FOLDER/test if FOLDER/train holds all others, or one in ten.
    classes: names or numbers of the classes to keep; their labels become 0, 1, … in this order.
    image_size: the side H in pixels. 0 keeps that of the data; images of a folder then get 64.
    Images of a folder are cropped to squares. They are grey if all of them are, or else RGB.
    Ends the program, with a line that says why, if there are no such images or classes.
    """
    if data in DOWNLOADS:
        try:
            dataset = DOWNLOADS[data](data_dir, train, download=True)
        except Exception as error:      # no network, a full disk, a damaged file, …
            sys.exit(f"error: {data} is not in {data_dir} and cannot be downloaded: {error}")
        images, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)    # C first
        names = [name.split(" - ")[-1] for name in dataset.classes]     # MNIST has "0 - zero", …
    elif data == "digits":
        images, labels, _, _ = (x[:18_000] if train else x[18_000:] for x in digits(20_000))
        names = "zero one two three four five six seven eight nine".split()     # as in MNIST
    else:
        images, labels, names, held_back = _read_folder(data, image_size or 64)
        images, labels = images[held_back != train], labels[held_back != train]
    if image_size and images.shape[-1] != image_size:   # in parts, as resizing makes float copies
        images = torch.cat([TF.resize(x, image_size) for x in images.split(1000)])
    numbers = {str(i): i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    for name in classes or []:          # names come before numbers, as a folder may be called 1
        if name not in numbers:
            sys.exit(f"error: there is no class {name}, only {', '.join(names)}")
    keep = list(dict.fromkeys(numbers[name] for name in classes or names))  # each once
    new = torch.full([len(names)], -1)  # maps an old label to the new one, or to -1
    new[keep] = torch.arange(len(keep))
    rows = new[labels] >= 0
    if rows.sum() < 1 + train:          # BatchNorm cannot train on a single image
        part = "to train on" if train else "held back from training"
        sys.exit(f"error: --data {data} has too few images {part}: {rows.sum()}")
    return images[rows].contiguous(), new[labels[rows]], [names[i] for i in keep]


def default_data(data_dir="data"):
    """Return "mnist", or "digits" if MNIST is not on disk and cannot be downloaded."""
    try:
        datasets.MNIST(data_dir, download=True)
        return "mnist"
    except Exception as error:
        print(f"MNIST cannot be downloaded ({error}): training on the built-in digits instead")
        return "digits"


@lru_cache(1)       # so that two calls, for training and held-out images, read the folder once
def _read_folder(folder, side):
    """Return images and labels (in the order of the paths), class names, and what to hold back."""
    known, taken, paths = Image.registered_extensions(), set(), []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=print):
        if os.path.realpath(root) in taken or "ckpt.pt" in files:   # read before, or a run's --out
            folders.clear()
            continue
        taken.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if name[0] != ".")     # a dot hides it
        paths += [Path(root, name) for name in sorted(files)
                  if name[0] != "." and Path(name).suffix.lower() in known]
    print(f"reading {len(paths):,} images of {folder}")
    with ThreadPoolExecutor() as pool:
        images = [*pool.map(lambda path: _read(path, side), paths)]
    good = [i for i, image in enumerate(images) if image is not None]
    if not good:
        sys.exit(f"error: {folder} is not a folder of images, {', '.join(DOWNLOADS)} or digits")
    channels = max(len(images[i]) for i in good)
    parts = [paths[i].relative_to(folder).parts for i in good]
    held_back = [i % 10 == 0 for i in range(len(good))]
    if {first for first, *_ in parts} == {"train", "test"}:
        held_back, parts = [path[0] == "test" for path in parts], [path[1:] for path in parts]
    classes = [first if rest else "(top)" for first, *rest in parts]
    names = sorted(set(classes))
    if "(top)" in names and len(names) > 1:
        print(f"{folder}: the images beside its sub-folders are a class of their own, (top)")
    images = torch.stack([images[i].expand(channels, -1, -1) for i in good])
    labels = torch.tensor([names.index(name) for name in classes])
    return images, labels, names, torch.tensor(held_back)


def _read(path, side):
    """Return an image (C, side, side) as uint8, upright, on white; or None if it cannot be read."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode[0] in "IF":       # convert would cut all values above 255
            raise ValueError("it has more than 8 bits a channel; scale it to 8 bits first")
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        if image.mode[-1] in "Aa" or "transparency" in image.info:      # A is alpha
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return TF.pil_to_tensor(ImageOps.fit(image.convert(mode), (side, side)))
    except Exception as error:
        sys.stderr.write(f"left out {path}: {error}\n")     # print would mix the threads' lines


def digits(n, seed=0):
    """Draw n digits with Pillow's own font: images (n, 1, 28, 28), uint8; labels, slant, pen (n,).

    The slant is a shear from -0.2 to 0.6, positive to the right. The pen is from 0 (thin) to 4.
    Both are independent of the digit, so one can test whether a model has found them.
    """
    font, glyphs = ImageFont.load_default(38), []       # twice as large as in the result
    for i in range(50):                 # ten digits, drawn with five pens each
        image = Image.new("L", (56, 56))
        ImageDraw.Draw(image).text((28, 28), str(i // 5), 255, font, "mm", stroke_width=i % 5)
        glyphs.append(TF.to_tensor(image))
    gen = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=gen)
    labels, pen = torch.randint(10, (n,), generator=gen), torch.randint(5, (n,), generator=gen)
    slant, angle, shift = uniform(-0.2, 0.6), uniform(-0.15, 0.15), uniform(-0.1, 0.1, 2)
    # The matrix of an image says, for each of its pixels, where in the glyph to look.
    maps = torch.stack([angle.cos(), angle.sin() + slant, shift[:, 0],
                        -angle.sin(), angle.cos(), shift[:, 1]], 1)
    grid = F.affine_grid(uniform(0.8, 1.2, 2, 1) * maps.view(n, 2, 3), (n, 1, 28, 28), False)
    parts = zip(torch.stack(glyphs)[5 * labels + pen].split(500), grid.split(500))
    images = torch.cat([F.grid_sample(x, part, align_corners=False) for x, part in parts])
    return images.mul(255).byte(), labels, slant, pen


def batches(images, labels, batch_size):
    """Yield one epoch of batches in random order: images (B, C, H, H) in [-1, 1], and labels (B,).

    `images` are uint8 and on the same device as `labels`. A last batch that would be shorter is
    left out. If there are fewer images than `batch_size`, all of them form one batch.
    """
    size = min(batch_size, len(images))
    order = torch.randperm(len(images), device=images.device)
    for rows in order[:len(images) // size * size].split(size):
        yield images[rows].float() / 127.5 - 1, labels[rows]


def spread(images, n):
    """Return at most n images, evenly spaced: the first n of a folder would be of one class."""
    return images[torch.linspace(0, len(images) - 1, min(n, len(images))).round().long()]


def save_grid(images, path, columns=8):
    """Write images (N, C, H, W) in [-1, 1] as one picture with `columns` images in each row."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = images.detach().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    grid = utils.make_grid(pixels, nrow=columns)[:images.shape[1]]  # make_grid turns grey into RGB
    TF.to_pil_image(grid).save(path)


def save_images(images, path, columns=8, labels=None):
    """Write images (N, C, H, W) in [-1, 1] as a grid if `path` has a suffix, else as a new folder.

    The folder holds 00000.png, … or, with labels (names or numbers), cat_00000.png, …
    """
    path = Path(path)
    if path.suffix:
        save_grid(images, path, columns)
    else:
        path.mkdir(parents=True)        # fails if it exists: a folder must not mix two runs
        for i, image in enumerate(images):
            label = f"{labels[i]}_".replace("/", "-") if labels else ""
            save_grid(image[None], path / f"{label}{i:05}.png")
    print(f"wrote {len(images)} images to {path}")


def save_gif(paths, path):
    """Join pictures, at most about 100, into a looping GIF: 0.25 s each, and 2 s for the last."""
    paths = [*paths[:-1][::len(paths) // 100 + 1], paths[-1]]
    frames = [Image.open(path).convert("RGB").quantize(64) for path in paths]
    frames[0].save(path, save_all=True, append_images=frames[1:], loop=0,
                   duration=[250] * (len(frames) - 1) + [2000])
