"""Makes `qtwist` a subcommand of twistd."""

from twisted.application.service import ServiceMaker

qtwist = ServiceMaker("qtwist", "qtwist.service", "qmail's mail system: SMTP server, queue and deliveries", "qtwist")
