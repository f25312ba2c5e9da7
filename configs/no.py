"""Norwegian Bokmål out of Debian packages; the code in their paths is nb, and the identifier's is no.

make recipe RECIPE=no
python -m jaxbert.evaluate --workdir=runs/no --fill "Filen kan ikke [MASK]."
"""

from jaxbert.config import Config
from jaxbert.recipes import COMMON, small

PACKAGES = f"""{COMMON} libreoffice-l10n-nb manpages-nb firefox-esr-l10n-nb-no thunderbird-l10n-nb-no
debian-edu-doc-nb-no freeciv-data mediawiki"""


def get_config() -> Config:
    return small("nb", PACKAGES, threshold=0.3)  # at 0.5 much of it passes for Danish: docs/new-language.md
