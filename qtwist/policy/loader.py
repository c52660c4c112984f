"""control/policies: one ``package.module.Class`` per line, for the administrator who writes no Python."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qtwist.control import ControlError
from qtwist.policy.base import Policy

if TYPE_CHECKING:
    from qtwist.control import Control


def load_policies(control: Control, name: str = "policies") -> list[Policy]:
    """The policies that control/`name` names, in order; none when there is no such file.

    ControlError, with file and line, for a line that cannot be imported, names no Policy, or whose `from_control`
    fails.
    """
    lines = control.numbered(name) or ()
    path = control.path(name)
    return [_load(control, path, number, line.decode("utf-8", "backslashreplace")) for number, line in lines]


def _load(control: Control, path: str, number: int, name: str) -> Policy:
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise ControlError(path, number, repr(name), "package.module.Class of a policy")
    # Whatever the foreign code raises, the administrator shall learn which line has brought it in.
    try:
        found = getattr(import_module(module_name), class_name)
    except Exception as error:
        raise ControlError(path, number, f"{name!r} ({type(error).__name__}: {error})", "a policy class") from error
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ControlError(path, number, repr(name), "a subclass of qtwist.policy.Policy")
    try:
        return found.from_control(control)
    except Exception as error:
        expected = "a policy that can be made with from_control(control)"
        raise ControlError(path, number, f"{name!r} ({type(error).__name__}: {error})", expected) from error
