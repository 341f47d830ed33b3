"""Describe masks as COCO does: boxes, areas and polygons."""
import numpy as np


def import_cv2():
    try:
        import cv2
    except ImportError as error:
        raise ImportError('the demo set needs OpenCV: pip install opencv-python') from error
    return cv2


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
