"""Dutch out of Debian packages.

make recipe RECIPE=nl
python -m jaxbert.evaluate --workdir=runs/nl --fill "Het bestand kan niet worden [MASK]."
"""

from jaxbert.config import Config
from jaxbert.recipes import COMMON, small

PACKAGES = f"""{COMMON} libreoffice-help-nl libreoffice-l10n-nl manpages-nl firefox-esr-l10n-nl thunderbird-l10n-nl
aptitude-doc-nl debian-edu-doc-nl debian-faq-nl gnome-user-docs rkward-data kmymoney-common dpkg omegat mediawiki"""


def get_config() -> Config:
    return small("nl", PACKAGES)
