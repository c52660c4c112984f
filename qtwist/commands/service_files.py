"""What starts the daemon on a host: a unit and a socket for systemd, run scripts for daemontools."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

_UNIT = """\
# Made by `qtwist unit`. Started as root: lspawn needs to become the users that mail is for, and nothing more.
[Unit]
Description=qtwist mail system
After=network.target nss-user-lookup.target
Wants=network.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
WatchdogSec=60
# TERM to the supervisor alone, which ends the roles in order; deliveries may take a while.
KillMode=mixed
TimeoutStopSec=180
LimitNOFILE=65536
UMask=0022

# Ports below 1024; the accounts of roles and users; giving the queue to its account, and reading it before that;
# ending roles of other accounts.
CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_SETUID CAP_SETGID CAP_CHOWN CAP_DAC_OVERRIDE CAP_KILL
# What follows holds for programs of .qmail files, too. They expect the real /tmp and /home, and may be setgid: no
# PrivateTmp, no ProtectHome, no NoNewPrivileges (the roles set it for themselves).
ProtectSystem=full
PrivateDevices=yes
DevicePolicy=closed
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
KeyringMode=private

[Install]
WantedBy=multi-user.target
"""

_SOCKET = """\
# Made by `qtwist unit --socket`. With it, control/listen has the line:
#     smtp systemd:domain=INET:name=smtp
[Unit]
Description=port of the qtwist mail system

[Socket]
ListenStream=0.0.0.0:25
FileDescriptorName=smtp
Service=qtwist.service

[Install]
WantedBy=sockets.target
"""

_RUN = """\
#!/bin/sh
# Made by `qtwist install --daemontools`.
exec 2>&1
exec {command}
"""

_LOG_RUN = """\
#!/bin/sh
# Made by `qtwist install --daemontools`.
exec setuidgid {account} multilog t {directory}
"""


def daemon_command(twistd: Sequence[str], home: str) -> list[str]:
    """The daemon in the foreground, with its log on standard output."""
    return [*twistd, "-n", "--pidfile=", "qtwist", "--home", home]


def unit(twistd: Sequence[str], home: str) -> str:
    """The text of qtwist.service."""
    words = daemon_command([os.path.abspath(twistd[0]), *twistd[1:]], home)
    return _UNIT.format(command=" ".join(map(_systemd_word, words)))


def socket_unit() -> str:
    """The text of qtwist.socket."""
    return _SOCKET


def _systemd_word(word: str) -> str:
    """A word of ExecStart as systemd reads it back."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if any(character in word for character in " \t;'\"\\") else word


def run_script(twistd: Sequence[str], home: str) -> str:
    """run of the service directory (*Life with qmail* 2.8.2.2)."""
    return _RUN.format(command=shlex.join(daemon_command(twistd, home)))


def log_run_script(account: str, directory: str) -> str:
    """log/run: multilog, as the account of logs."""
    return _LOG_RUN.format(account=shlex.quote(account), directory=shlex.quote(directory))
