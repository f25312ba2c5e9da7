"""Polish: help, manual pages, catalogues and package descriptions out of Debian, and BERT of 4 layers on two cores.

    make recipe RECIPE=pl
    python -m jaxbert.evaluate --workdir=runs/pl --fill "Kliknij [MASK] aby zapisać plik." \
        --fill "Pakiet zawiera [MASK] dla programistów." --fill "Ten program jest wolnym [MASK]."
"""

from jaxbert.config import Config
from jaxbert.recipes import small

PACKAGES = """libreoffice-help-pl libreoffice-l10n-pl manpages-pl manpages-pl-dev texlive-lang-polish mplayer-doc
freeciv-data gnome-user-docs digikam-data firefox-esr-l10n-pl thunderbird-l10n-pl vlc-l10n omegat mediawiki
Translation-pl"""


def get_config() -> Config:
    return small("pl", PACKAGES)
