"""The packages of the wheel; all else is in pyproject.toml. configs/ is installed as unetdiff/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["unetdiff", "unetdiff.*"]), "unetdiff.configs"],
    package_dir={"unetdiff.configs": "configs"},
)
