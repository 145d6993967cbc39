"""Each room says in its first lines what it is and what of it is public: the names are there."""

import importlib
import pkgutil
import re

import pytest

import bcd_ray

ROOMS = [module.name for module in pkgutil.walk_packages(bcd_ray.__path__, "bcd_ray.") if module.ispkg]


@pytest.mark.parametrize("room", ROOMS)
def test_the_public_names_of_a_room_exist(room: str) -> None:
    text = importlib.import_module(room).__doc__
    assert text
    for module, name in re.findall(r"`(\w+)\.(\w+)`", text.partition("Public:")[2]):
        assert hasattr(importlib.import_module(f"{room}.{module}"), name), f"{room} has no {module}.{name}"
