"""setuptools, for editable installations only.

The project runs from its checkout: recipes, engine files and data sets lie beside the code, and its packages have
everyday names (train, data, models). Copied into site-packages they would lose the one and clash with the other.
"""

from setuptools.build_meta import (  # noqa: F401
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
)


def build_wheel(*arguments: object, **named: object) -> str:
    raise SystemExit("this project is used from its checkout: pip install -e . (CONTRIBUTING.md says why)")
