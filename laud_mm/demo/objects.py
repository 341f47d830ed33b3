"""Objects of the demo set: cut out of photographs or drawn, scaled and turned.

All arithmetic is on integers, coordinates in 1/1024 pixel, so that every
machine makes the same pixels.
"""
import numpy as np

SHIFT = 10
ONE = 1 << SHIFT  # fixed-point unit of coordinates, cosines and sines
QUARTER = (1024, 989, 887, 724, 512, 265)  # cosines of 0, 15, ... 75 degrees
COS = (*QUARTER, 0, *[-c for c in QUARTER[:0:-1]], *[-c for c in QUARTER], 0, *QUARTER[:0:-1])
SIN = COS[-6:] + COS[:-6]

SIDE = 128  # side of an object's square image before it is scaled
TEXTURES = ('brick', 'grass', 'gravel')
PALETTE = ((250, 210, 30), (40, 200, 70), (60, 120, 250), (240, 70, 200), (40, 220, 230),
           (250, 250, 250))

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


def make_objects(photos, split):
    """Make the upright objects that a split pastes.

    Returns:
        dict[str, list[np.ndarray]]: Class name to RGBA images, uint8 of shape
        (SIDE, SIDE, 4), colours multiplied by alpha.
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
            'ring': [resize(apply_alpha(white, ring), SIDE)],
            'star': [resize(apply_alpha(white, star), SIDE)]}


def cut_out(photo, outline):
    """Cut the inside of an outline: RGBA, uint8 of shape (SIDE, SIDE, 4)."""
    points = np.array(outline)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    height, width = bottom - top, right - left
    cut = apply_alpha(photo[top:bottom, left:right],
                      fill((points - (left, top)).tolist(), height, width))
    side = max(height, width)
    square = np.zeros((side, side, 4), np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    square[y:y + height, x:x + width] = cut
    return resize(square, SIDE)


def paint(rng, stamp, photos):
    """Colour a white stamp and grain it with a photographed texture."""
    colour = np.array(PALETTE[rng.integers(len(PALETTE))])
    texture = photos[TEXTURES[rng.integers(len(TEXTURES))]]
    y, x = rng.integers(0, 512 - SIDE, size=2)
    grain = 128 + texture[y:y + SIDE, x:x + SIDE].astype(np.int32) // 2
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
