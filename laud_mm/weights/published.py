"""Where published weights of the static networks are: torchvision's, by the network's name."""
from laud_mm.specs.arguments import check_choice

_URL = 'https://download.pytorch.org/models/{}.pth'
# The first weights that torchvision published (V1), and the better ones of later recipes (V2).
_FILES = {
    'resnet50': ('resnet50-0676ba61', 'resnet50-11ad3fa6'),
    'resnet101': ('resnet101-63fe2227', 'resnet101-cd907fc2'),
    'resnet152': ('resnet152-394f9c45', 'resnet152-f82ba261'),
    'regnety_400mf': ('regnet_y_400mf-c65dace8', 'regnet_y_400mf-e6988f5f'),
    'regnety_800mf': ('regnet_y_800mf-1b27b58c', 'regnet_y_800mf-58fc7688'),
    'regnety_1.6gf': ('regnet_y_1_6gf-b11a554e', 'regnet_y_1_6gf-0d7bc02a'),
    'regnety_3.2gf': ('regnet_y_3_2gf-b5a9779c', 'regnet_y_3_2gf-9180c971'),
}
PUBLISHED = tuple(_FILES)


def published_urls(network: str) -> tuple[str, str]:
    """URLs of a network's static ImageNet weights, V1 and V2.

    Raises:
        ValueError: If none are published for it.
    """
    first, second = _FILES[check_choice('network', network, PUBLISHED)]
    return _URL.format(first), _URL.format(second)
