"""A process that may not reach the network: a seccomp filter of a few lines (doc/security.md).

It refuses to make sockets but those of this host (AF_UNIX); what was handed over, a listening socket and the
connections that it gives, goes on working. Linux on x86-64 and AArch64; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

# Architecture as the kernel names it: (AUDIT_ARCH, number of the system call `socket`).
_MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}

_AF_UNIX = 1
_IO_URING_SETUP = 425  # the same number everywhere; what it offers would go around the filter
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF: LD W ABS, JMP JEQ K, JMP JGE K, RET K
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000  # numbers of system calls of the x32 interface, on x86-64
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # where they lie in struct seccomp_data

_PR_SET_SECCOMP, _FILTER = 22, 2


def _program(architecture: int, socket: int) -> bytes:
    """The filter: struct sock_filter (code, jump if true, jump if false, k) after one another."""
    steps = (
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 4, 0, _X32),  # to the refusal
        (_EQUAL, 3, 0, _IO_URING_SETUP),
        (_EQUAL, 0, 3, socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 1, 0, _AF_UNIX),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    )
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def forbid_network() -> bool:
    """From now on this process, and whatever it starts, cannot open a socket of the network; False where that is not to
    be had. Needs no_new_privs, which lspawn has set."""
    machine = _MACHINES.get(os.uname().machine)
    if os.uname().sysname != "Linux" or machine is None:
        return False
    program = _program(*machine)
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    done: int = prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(given), 0, 0)
    return done == 0
