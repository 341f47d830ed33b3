"""Small studies on images that come with Python packages: what `make demo` and others run."""
from laud_mm.utils.stack import require_packages

require_packages('laud_mm.demo', 'mmengine')
