"""Keeps one warning out of a strict build: a list that is made at import cannot be read before."""
import logging


class _NotAboutOperations(logging.Filter):
    def filter(self, record):
        return 'laud_mm.ops.__all__' not in record.getMessage()


def on_startup(command, dirty):
    logging.getLogger('mkdocs.plugins.griffe').addFilter(_NotAboutOperations())
