"""Swedish: help, catalogues and a book out of Debian packages, and BERT of 4 layers on it, on two cores.

    make recipe RECIPE=sv
    python -m jaxbert.evaluate --workdir=runs/sv --fill "Klicka på [MASK] för att spara filen." \
        --fill "Filen kunde inte [MASK]." --fill "Han gick [MASK] huset."
"""

from jaxbert.config import Config
from jaxbert.recipes import small

PACKAGES = """libreoffice-help-sv libreoffice-l10n-sv gcc-12-locales cfi-sv gnome-devel-docs gnome-user-docs
rkward-data kmymoney-common kate5-data binutils-common manpages-sv firefox-esr-l10n-sv-se evolution-common
digikam-data dpkg mediawiki vlc-l10n"""


def get_config() -> Config:
    return small("sv", PACKAGES)
