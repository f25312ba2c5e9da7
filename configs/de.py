"""German out of Debian packages.

make recipe RECIPE=de
python -m jaxbert.evaluate --workdir=runs/de --fill "Die Datei kann nicht [MASK] werden."
"""

from jaxbert.config import Config
from jaxbert.recipes import COMMON, small

PACKAGES = f"""{COMMON} libreoffice-help-de libreoffice-l10n-de manpages-de manpages-de-dev firefox-esr-l10n-de
thunderbird-l10n-de gnome-user-docs gnome-devel-docs freeciv-data gcc-12-locales mplayer-doc mediawiki Translation-de"""


def get_config() -> Config:
    return small("de", PACKAGES)
