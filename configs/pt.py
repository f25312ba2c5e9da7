"""Portuguese, of Portugal and Brazil, out of Debian packages.

make recipe RECIPE=pt
python -m jaxbert.evaluate --workdir=runs/pt --fill "O ficheiro não pode ser [MASK]."
"""

from jaxbert.config import Config
from jaxbert.recipes import COMMON, small

PACKAGES = f"""{COMMON} libreoffice-help-pt libreoffice-help-pt-br libreoffice-l10n-pt libreoffice-l10n-pt-br
manpages-pt-br debian-faq-pt gnome-user-docs gnome-devel-docs rkward-data mediawiki Translation-pt Translation-pt_BR"""


def get_config() -> Config:
    return small("pt", PACKAGES)
