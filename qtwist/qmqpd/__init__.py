"""The QMQP server: requests over TCP from the clients of control/qmqpclients, and its factory."""

from __future__ import annotations
