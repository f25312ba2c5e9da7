"""Turkish out of Debian packages.

make recipe RECIPE=tr
python -m jaxbert.evaluate --workdir=runs/tr --fill "Dosya [MASK] açılamadı."
"""

from jaxbert.config import Config
from jaxbert.recipes import COMMON, small

PACKAGES = f"""{COMMON} libreoffice-help-tr libreoffice-l10n-tr manpages-tr firefox-esr-l10n-tr thunderbird-l10n-tr
gnome-user-docs gcc-12-locales binutils-common mediawiki"""


def get_config() -> Config:
    return small("tr", PACKAGES)
