"""Build a small COCO-format detection set from real photographs.

Scenes are crops of photographs bundled with scikit-image and scikit-learn. Cut-outs of such
photographs (cat, coin, cup, flower) and drawn shapes (ring, star) are pasted into them, later
objects over earlier ones. Train and val crop disjoint parts of photographs (some photographs
belong to one of them only) and paste different coins.

Conventions of the annotations: mask, box and area describe the *visible* part of an object; an
object is only pasted where every earlier one stays visible by at least 60 %, and left out where
there is no such place. Every object that is in an image is therefore annotated.

All pixel arithmetic is on integers, so that a seed gives the same pixels on every machine.
"""
import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .coco_masks import describe_mask, import_cv2
from .objects import make_objects, paint, resize, scale_colours, transform

CLASSES = ('cat', 'coin', 'cup', 'flower', 'ring', 'star')
SPLITS = ('train', 'val')
FORMAT = 'laud_mm demo detection set, version 1'
MINIMA = {'num_train': 1, 'num_val': 1, 'image_size': 64, 'seed': 0}

OBJECTS_PER_IMAGE = (2, 5)
SIDES = (34, 80)  # pixels of an object's longer side in an image of 160 pixels
MAX_TURN = {'cat': 2, 'cup': 2}  # steps of 15 degrees; the others turn freely
MIN_VISIBLE = 60  # percent of an object that stays visible
PLACEMENTS = 20  # tries before an object is left out

# Photograph and (left, top, right, bottom) of the part that scenes are cropped from.
SCENES = {
    'train': (('china', (0, 0, 400, 427)), ('motorcycle', (0, 0, 440, 500)),
              ('rocket', (0, 0, 400, 427)), ('immunohistochemistry', (0, 0, 320, 512)),
              ('hubble_deep_field', (0, 0, 560, 872)), ('gravel', (0, 0, 320, 512)),
              ('grass', (0, 0, 512, 512)), ('camera', (0, 0, 512, 512))),
    'val': (('china', (400, 0, 640, 427)), ('motorcycle', (440, 0, 741, 500)),
            ('rocket', (400, 0, 640, 427)), ('immunohistochemistry', (320, 0, 512, 512)),
            ('hubble_deep_field', (560, 0, 1000, 872)), ('gravel', (320, 0, 512, 512)),
            ('flower', (448, 0, 640, 380)), ('brick', (0, 0, 512, 512)))}


@dataclass(frozen=True)
class DemoSettings:
    """What a set is built from.

    Args:
        num_train (int): Number of train images, at least 1.
        num_val (int): Number of val images, at least 1.
        image_size (int): Width and height of every image in pixels, at least 64.
        seed (int): Seed of all random choices, at least 0.

    Raises:
        ValueError: If a value is not an integer in its range.
    """

    num_train: int = 400
    num_val: int = 100
    image_size: int = 160
    seed: int = 0

    def __post_init__(self):
        for name, least in MINIMA.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f'{name} is {value!r}, allowed are integers from {least} on')


def build_detection_set(root, num_train=400, num_val=100, image_size=160, seed=0):
    """Build the set, or find it finished.

    Layout: `train/*.png`, `val/*.png`, `annotations/instances_{train,val}.json` and
    `settings.json`. The folder appears under its name only when it is complete.

    Args:
        root (str | Path): Folder of the set. It must not exist, or be a set with these settings.
        num_train (int): Number of train images.
        num_val (int): Number of val images.
        image_size (int): Width and height of every image in pixels.
        seed (int): Seed of all random choices.

    Returns:
        Path: `root`.

    Raises:
        ValueError: If an argument is out of its range.
        FileExistsError: If `root` exists and is anything else than this set.
        ImportError: If a package that the build needs is missing.
    """
    settings = DemoSettings(num_train, num_val, image_size, seed)
    root = Path(root)
    if is_finished(root, settings):
        return root
    photos = load_photos()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as scratch:
        folder = Path(scratch) / 'set'
        for split in SPLITS:
            write_split(folder, split, settings, photos)
        (folder / 'settings.json').write_text(json.dumps(describe(settings), indent=2) + '\n')
        # A second builder may have finished meanwhile.
        if not is_finished(root, settings):
            os.rename(folder, root)
    return root


def digest(root):
    """Hash what a set means: decoded pixels and annotations, not PNG bytes.

    Args:
        root (str | Path): Folder of a finished set.

    Returns:
        str: SHA-256 in hexadecimal.
    """
    cv2 = import_cv2()
    total = hashlib.sha256()
    for split in SPLITS:
        total.update((Path(root) / 'annotations' / f'instances_{split}.json').read_bytes())
        for path in sorted((Path(root) / split).glob('*.png')):
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            total.update(f'{path.name} {image.shape}'.encode() + image.tobytes())
    return total.hexdigest()


def describe(settings):
    return {'format': FORMAT, **asdict(settings)}


def is_finished(root, settings):
    """Tell whether `root` is this very set; raise where something else is in the way."""
    if not os.path.lexists(root):
        return False
    found = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((root / 'settings.json').read_text())
    if found == describe(settings):
        return True
    if not isinstance(found, dict) or found.get('format') != FORMAT:
        raise FileExistsError(f'{root} exists and is not a {FORMAT}: name another folder')
    raise FileExistsError(f'{root} holds a set with other settings, {found}: '
                          'name another folder or remove this one')


def load_photos():
    """Load the bundled photographs.

    Returns:
        dict[str, np.ndarray]: Name to RGB image, uint8 of shape (height, width, 3).
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError('the demo set needs photographs of two packages: '
                          'pip install scikit-image scikit-learn') from error
    import_cv2()
    photos = {name: load_sample_image(f'{name}.jpg') for name in ('china', 'flower')}
    photos['motorcycle'] = data.stereo_motorcycle()[0]
    for name in ('brick', 'camera', 'chelsea', 'coffee', 'coins', 'grass', 'gravel',
                 'hubble_deep_field', 'immunohistochemistry', 'rocket'):
        photos[name] = getattr(data, name)()
    return {name: image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
            for name, image in photos.items()}


def write_split(folder, split, settings, photos):
    """Write the images and the annotation file of one split."""
    cv2 = import_cv2()
    (folder / split).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    stamps = make_objects(photos, split)
    images, annotations = [], []
    number = settings.num_train if split == 'train' else settings.num_val
    size = settings.image_size
    for index in range(number):
        # Seeding each image by itself makes a larger set an extension of a smaller one.
        rng = np.random.Generator(
            np.random.PCG64([settings.seed, SPLITS.index(split), index]))
        image, objects = compose(rng, split, size, photos, stamps)
        name = f'{index + 1:06d}.png'
        if not cv2.imwrite(str(folder / split / name), image[..., ::-1]):
            raise OSError(f'{folder / split / name} could not be written')
        images.append({'id': index + 1, 'file_name': name, 'width': size, 'height': size})
        for category, mask in objects:
            annotations.append({'id': len(annotations) + 1, 'image_id': index + 1,
                                'category_id': CLASSES.index(category) + 1, 'iscrowd': 0,
                                **describe_mask(mask)})
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES, 1)]
    content = {'info': {'description': FORMAT}, 'licenses': [], 'images': images,
               'annotations': annotations, 'categories': categories}
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def compose(rng, split, size, photos, stamps):
    """Make one image.

    Returns:
        tuple: RGB image, uint8 of shape (size, size, 3), and a list of (class name, visible
        mask), each mask bool of shape (size, size).
    """
    image = make_scene(rng, split, size, photos)
    objects = []  # class name, full area in pixels, visible mask
    for _ in range(rng.integers(*OBJECTS_PER_IMAGE, endpoint=True)):
        category, cutout = make_object(rng, size, photos, stamps)
        layer = place(rng, cutout, size, objects)
        if layer is None:
            continue
        alpha = layer[..., 3:].astype(np.int32)
        image = (layer[..., :3] + (image * (255 - alpha) + 127) // 255).astype(np.uint8)
        mask = layer[..., 3] >= 128
        objects = [(name, full, seen & ~mask) for name, full, seen in objects]
        objects.append((category, int(mask.sum()), mask))
    return image, [(name, seen) for name, _, seen in objects]


def make_scene(rng, split, size, photos):
    """Crop, mirror and tint a photograph: uint8 of shape (size, size, 3)."""
    name, (left, top, right, bottom) = SCENES[split][rng.integers(len(SCENES[split]))]
    longest = min(right - left, bottom - top)
    side = int(rng.integers(longest // 2, longest, endpoint=True))
    x = int(rng.integers(left, right - side, endpoint=True))
    y = int(rng.integers(top, bottom - side, endpoint=True))
    scene = resize(photos[name][y:y + side, x:x + side], size)
    if rng.integers(2):
        scene = scene[:, ::-1]
    return scale_colours(scene, rng.integers(200, 290, size=3), 255)


def make_object(rng, size, photos, stamps):
    """Draw a class and an object of it.

    Returns:
        tuple: Class name and RGBA image, uint8 of shape (height, width, 4), colours
        multiplied by alpha.
    """
    category = CLASSES[rng.integers(len(CLASSES))]
    stamp = stamps[category][rng.integers(len(stamps[category]))]
    if category in ('ring', 'star'):
        stamp = paint(rng, stamp, photos)
    side = int(rng.integers(SIDES[0], SIDES[1], endpoint=True)) * size // 160
    sides = [side * int(n) // 16 for n in rng.integers(13, 16, size=2, endpoint=True)]
    most = MAX_TURN.get(category, 12)
    turn = int(rng.integers(-most, most, endpoint=True))
    if rng.integers(2):
        stamp = stamp[:, ::-1]
    cutout = transform(stamp, *sides, turn)
    gain = rng.integers(200, 290)
    colours = scale_colours(cutout[..., :3], gain, cutout[..., 3:])
    return category, np.concatenate([colours, cutout[..., 3:]], axis=2)


def place(rng, cutout, size, objects):
    """Find a place that hides no earlier object too much.

    Returns:
        np.ndarray | None: The cut-out in an empty RGBA layer, uint8 of shape (size, size, 4).
    """
    height, width = cutout.shape[:2]
    for _ in range(PLACEMENTS):
        x = rng.integers(0, size - width, endpoint=True)
        y = rng.integers(0, size - height, endpoint=True)
        layer = np.zeros((size, size, 4), np.uint8)
        layer[y:y + height, x:x + width] = cutout
        mask = layer[..., 3] >= 128
        if all(100 * int((seen & ~mask).sum()) >= MIN_VISIBLE * full
               for _, full, seen in objects):
            return layer
    return None
