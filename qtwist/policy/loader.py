"""control/policies: which policies are asked first, and in which order.

A line is ``package.module.Class``, a policy that somebody has written, or the name of one that comes with qtwist.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from qtwist.control import ControlError
from qtwist.policy.base import Policy

if TYPE_CHECKING:
    from qtwist.control import Control


def load_policies(
    control: Control, standard: Mapping[str, Policy] | None = None, file: str = "policies"
) -> list[Policy]:
    """The policies that control/`file` names, in order; none when there is no such file. `standard` are those that may
    be named by a word.

    ControlError, with file and line, for a line that cannot be imported, names no Policy, or whose `from_control`
    fails, and for a word that comes twice.
    """
    path = control.path(file)
    found: list[Policy] = []
    for number, line in control.numbered(file) or ():
        name = line.decode("utf-8", "backslashreplace")
        policy = (standard or {}).get(name)
        if policy is None:
            policy = _load(control, path, number, name)
        elif policy in found:
            raise ControlError(path, number, f"{name!r} once more", "each policy once")
        found.append(policy)
    return found


def _load(control: Control, path: str, number: int, name: str) -> Policy:
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise ControlError(path, number, repr(name), "package.module.Class of a policy, or one of qtwist's by name")
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
