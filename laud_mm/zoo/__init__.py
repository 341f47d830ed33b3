"""The model zoo, made from configs and result files: `tools/make_model_zoo.py` writes it."""
from laud_mm.utils.stack import require_packages

require_packages('laud_mm.zoo', 'mmengine')

from .entries import Entry, read_entries
from .figures import Figures, all_figures, figures_of
from .measured import Results, read_results
from .metafiles import make_metafiles
from .page import make_page

__all__ = ['Entry', 'Figures', 'Results', 'all_figures', 'figures_of', 'make_metafiles',
           'make_page', 'read_entries', 'read_results']
