"""Czech out of Debian packages.

make recipe RECIPE=cs
python -m jaxbert.evaluate --workdir=runs/cs --fill "Soubor nelze [MASK]."
"""

from jaxbert.config import Config
from jaxbert.recipes import COMMON, small

PACKAGES = f"""{COMMON} libreoffice-help-cs libreoffice-l10n-cs manpages-cs firefox-esr-l10n-cs thunderbird-l10n-cs
aptitude-doc-cs gnome-user-docs gnome-devel-docs mplayer-doc omegat Translation-cs"""


def get_config() -> Config:
    return small("cs", PACKAGES)
