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

CLASSES = ('cat', 'coin', 'cup', 'flower', 'ring', 'star')
SPLITS = ('train', 'val')
FORMAT = 'laud_mm demo detection set, version 1'
MINIMA = {'num_train': 1, 'num_val': 1, 'image_size': 64, 'seed': 0}

SHIFT = 10
ONE = 1 << SHIFT  # fixed-point unit of coordinates, cosines and sines
QUARTER = (1024, 989, 887, 724, 512, 265)  # cosines of 0, 15, ... 75 degrees
COS = (*QUARTER, 0, *[-c for c in QUARTER[:0:-1]], *[-c for c in QUARTER], 0, *QUARTER[:0:-1])
SIN = COS[-6:] + COS[:-6]

STAMP = 128  # side of an object's square image before it is scaled
OBJECTS_PER_IMAGE = (2, 5)
SIDES = (34, 80)  # pixels of an object's longer side in an image of 160 pixels
MAX_TURN = {'cat': 2, 'cup': 2}  # steps of 15 degrees; the others turn freely
MIN_VISIBLE = 60  # percent of an object that stays visible
PLACEMENTS = 20  # tries before an object is left out
PALETTE = ((250, 210, 30), (40, 200, 70), (60, 120, 250), (240, 70, 200), (40, 220, 230),
           (250, 250, 250))

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
TEXTURES = ('brick', 'grass', 'gravel')

# Outlines in pixels (x, y) of the photograph they are cut from.
CAT = ((40, 0), (35, 50), (34, 90), (40, 125), (50, 160), (65, 190), (85, 215), (110, 235),
       (140, 250), (165, 262), (195, 272), (225, 280), (260, 282), (290, 272), (310, 258),
       (318, 235), (335, 205), (350, 178), (360, 150), (362, 115), (357, 82), (372, 45), (396, 0))
CUP = ((76, 215), (80, 185), (90, 157), (105, 130), (125, 105), (150, 85), (174, 72), (186, 55),
       (205, 38), (235, 24), (270, 18), (300, 18), (340, 27), (370, 44), (392, 68), (405, 66),
       (420, 68), (424, 78), (419, 104), (440, 125), (460, 155), (474, 190), (479, 225),
       (477, 255), (466, 290), (450, 315), (425, 342), (395, 363), (360, 377), (325, 386),
       (290, 389), (250, 386), (210, 377), (180, 366), (150, 348), (120, 322), (100, 297),
       (87, 267), (78, 240))
FLOWER = ((319, 85), (310, 85), (278, 98), (270, 95), (242, 102), (229, 113), (214, 116),
          (206, 125), (204, 134), (189, 146), (187, 160), (190, 171), (179, 170), (176, 176),
          (178, 194), (169, 204), (169, 229), (174, 239), (172, 260), (188, 296), (197, 304),
          (201, 315), (249, 351), (263, 349), (290, 359), (312, 355), (335, 357), (397, 330),
          (426, 287), (444, 239), (445, 212), (439, 192), (431, 181), (432, 164), (426, 146),
          (411, 133), (409, 124), (400, 115), (388, 113), (382, 104), (372, 99), (359, 98),
          (348, 92), (334, 93))
STAR = ((0, -256), (70, -96), (243, -79), (113, 37), (150, 207), (0, 118), (-150, 207),
        (-113, 37), (-243, -79), (-70, -96))  # around (0, 0)
# Centre and half-axes (x, y, half width, half height) of each coin.
COINS = ((44, 54, 22, 19), (101, 56, 20, 17), (155, 52, 23, 22), (216, 51, 24, 21),
         (276, 53, 20, 19), (335, 44, 30, 28), (46, 125, 22, 21), (103, 126, 19, 19),
         (153, 127, 20, 17), (206, 125, 21, 20), (271, 120, 26, 24), (337, 125, 20, 20),
         (44, 197, 19, 18), (102, 196, 22, 21), (154, 198, 20, 19), (213, 193, 24, 23),
         (274, 194, 23, 22), (347, 186, 32, 30), (46, 260, 28, 27), (114, 266, 22, 21),
         (172, 262, 28, 25), (244, 264, 25, 23), (301, 264, 26, 24), (357, 269, 22, 21))


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


def import_cv2():
    try:
        import cv2
    except ImportError as error:
        raise ImportError('the demo set needs OpenCV: pip install opencv-python') from error
    return cv2


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
    stamps = make_stamps(photos, split)
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


def make_stamps(photos, split):
    """Make the upright objects that a split pastes.

    Returns:
        dict[str, list[np.ndarray]]: Class name to RGBA images, uint8 of shape
        (STAMP, STAMP, 4), colours multiplied by alpha.
    """
    coins = [c for i, c in enumerate(COINS) if (i % 4 == 3) == (split == 'val')]
    white = np.full((512, 512, 3), 255, np.uint8)
    ring = fill(polygonise(256, 256, 256, 256), 512, 512)
    ring &= ~fill(polygonise(256, 256, 140, 140), 512, 512)
    star = fill([(x + 256, y + 279) for x, y in STAR], 512, 512)
    return {'cat': [cut_out(photos['chelsea'], CAT)],
            'coin': [cut_out(photos['coins'], polygonise(*coin)) for coin in coins],
            'cup': [cut_out(photos['coffee'], CUP)],
            'flower': [cut_out(photos['flower'], FLOWER)],
            'ring': [resize(apply_alpha(white, ring), STAMP)],
            'star': [resize(apply_alpha(white, star), STAMP)]}


def cut_out(photo, outline):
    """Cut the inside of an outline: RGBA, uint8 of shape (STAMP, STAMP, 4)."""
    points = np.array(outline)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    height, width = bottom - top, right - left
    cut = apply_alpha(photo[top:bottom, left:right],
                      fill((points - (left, top)).tolist(), height, width))
    side = max(height, width)
    square = np.zeros((side, side, 4), np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    square[y:y + height, x:x + width] = cut
    return resize(square, STAMP)


def paint(rng, stamp, photos):
    """Colour a white stamp and grain it with a photographed texture."""
    colour = np.array(PALETTE[rng.integers(len(PALETTE))])
    texture = photos[TEXTURES[rng.integers(len(TEXTURES))]]
    y, x = rng.integers(0, 512 - STAMP, size=2)
    grain = 128 + texture[y:y + STAMP, x:x + STAMP].astype(np.int32) // 2
    colours = stamp[..., :3] * colour * grain // (255 * 255)
    return np.concatenate([colours.astype(np.uint8), stamp[..., 3:]], axis=2)


def polygonise(x, y, half_width, half_height):
    """List 24 points (x, y) of an ellipse, in whole pixels."""
    return [(x + (half_width * c + ONE // 2) // ONE, y + (half_height * s + ONE // 2) // ONE)
            for c, s in zip(COS, SIN)]


def fill(outline, height, width):
    """Rasterise a polygon by the even-odd rule at pixel centres: bool (height, width)."""
    # Twice the coordinates, so that pixel centres are integers too.
    y, x = 2 * np.mgrid[:height, :width] + 1
    inside = np.zeros((height, width), bool)
    for (xa, ya), (xb, yb) in zip(outline, [*outline[1:], outline[0]]):
        crosses = (2 * ya > y) != (2 * yb > y)
        left_of = ((x - 2 * xa) * (yb - ya) < (y - 2 * ya) * (xb - xa)) == (yb > ya)
        inside ^= crosses & left_of
    return inside


def apply_alpha(image, mask):
    """Join an RGB image and a mask to RGBA with colours multiplied by alpha."""
    return np.concatenate([image * mask[..., None], mask[..., None] * np.uint8(255)], axis=2)


def scale_colours(colours, gain, limit):
    """Multiply colours by gain / 256, up to the limit."""
    return np.minimum(colours * gain >> 8, limit).astype(np.uint8)


def halve(image):
    """Average 2 x 2 pixels: uint8 (height, width, c) to (height // 2, width // 2, c)."""
    height, width = (n // 2 * 2 for n in image.shape[:2])
    even = image[:height, :width].astype(np.int32)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def resize(image, size):
    """Resize a square image: uint8 (side, side, c) to (size, size, c)."""
    while image.shape[0] >= 2 * size:
        image = halve(image)
    at = (2 * np.arange(size) + 1) * image.shape[0] * ONE // (2 * size)
    return sample(image, *np.meshgrid(at, at))


def transform(stamp, width, height, turn):
    """Scale a stamp to width x height pixels, turn it by 15 degrees times turn, and trim it."""
    while stamp.shape[0] >= 2 * max(width, height):
        stamp = halve(stamp)
    length = stamp.shape[0]
    # `sample` goes on with the border, which has to be transparent.
    stamp = np.pad(stamp, ((1, 1), (1, 1), (0, 0)))
    side = max(width, height) * 3 // 2 + 2
    offsets = (2 * np.arange(side) + 1 - side) * ONE // 2
    dx, dy = np.meshgrid(offsets, offsets)
    cos, sin = COS[turn % 24] * length, SIN[turn % 24] * length
    middle = (length + 2) * ONE // 2
    x = ((dx * (cos // width) + dy * (sin // width)) >> SHIFT) + middle
    y = ((dy * (cos // height) - dx * (sin // height)) >> SHIFT) + middle
    turned = sample(stamp, x, y)
    rows, columns = (np.flatnonzero(turned[..., 3].any(axis=a)) for a in (1, 0))
    return turned[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def sample(image, x, y):
    """Sample an image bilinearly; outside, its border pixels go on.

    Args:
        image (np.ndarray): uint8 of shape (height, width, c).
        x (np.ndarray): Integers of shape (h, w) in 1/1024 pixel; the first pixel's centre is
            at 512.
        y (np.ndarray): Likewise.

    Returns:
        np.ndarray: uint8 of shape (h, w, c).
    """
    height, width, channels = image.shape
    x, y = x - ONE // 2, y - ONE // 2
    columns = [np.clip((x >> SHIFT) + i, 0, width - 1) for i in (0, 1)]
    rows = [np.clip((y >> SHIFT) + i, 0, height - 1) * width for i in (0, 1)]
    pixels = image.reshape(-1, channels).astype(np.int32)
    right_part, low_part = ((n & (ONE - 1)).astype(np.int32)[..., None] for n in (x, y))
    # np.take is several times faster here than indexing.
    upper, lower = (np.take(pixels, row + columns[0], axis=0) * (ONE - right_part)
                    + np.take(pixels, row + columns[1], axis=0) * right_part for row in rows)
    total = upper * (ONE - low_part) + lower * low_part
    return ((total + (ONE * ONE >> 1)) >> 2 * SHIFT).astype(np.uint8)


def describe_mask(mask):
    """Describe a visible mask as COCO does.

    Args:
        mask (np.ndarray): bool of shape (size, size), not empty.

    Returns:
        dict: `bbox` [x, y, width, height] in pixels, `area` in pixels, and `segmentation`, a
        list of polygons [x1, y1, x2, y2, ...] in pixels, whose union is the mask.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=a)) for a in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    return {'bbox': [float(n) for n in box], 'area': float(mask.sum()),
            'segmentation': trace(mask)}


def trace(mask):
    """List the polygons around a mask; a part with a hole is cut in two through the hole."""
    cv2 = import_cv2()
    # At twice the size, contours through pixel centres map to exact pixel corners.
    doubled = np.repeat(np.repeat(mask, 2, axis=0), 2, axis=1).astype(np.uint8)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = hierarchy.reshape(-1, 4)[:, 3]
    for contour, parent in zip(contours, parents):
        if parent >= 0:
            spots = (contour.reshape(-1, 2)[:, 0] + 1) // 2
            return cut_and_trace(mask, int(spots.min() + spots.max()) // 2)
    polygons = []
    for contour in contours:
        corners = (contour + 1) // 2
        simple = cv2.approxPolyDP(corners, 0.75, True)
        if len(simple) < 3:
            simple = corners
        polygons.append([float(n) for n in simple.ravel()])
    return polygons


def cut_and_trace(mask, column):
    left, right = mask.copy(), mask.copy()
    left[:, column:] = False
    right[:, :column] = False
    return trace(left) + trace(right)
