"""The table of control files: name, kind, default, readers, when a change is noticed (spec/qmail.md §3)."""

from __future__ import annotations

import attrs

from qtwist import control_checks as checks

# How a control file is read; the words are those of §2.1.
LINE = "line"
INTEGER = "int"
LIST = "list"
COLON_LIST = "colon list"
TEXT = "text"
CDB_FILE = "cdb"
PEM_FILE = "pem"

#: What control/ may hold beside files.
DIRECTORIES = {
    "notlshosts": "HOST: an empty file says that TLS is never tried with HOST",
    "servercerts": "NAME/servercert.pem: the certificates for clients that ask for NAME ([TLS](tls.md))",
    "tlshosts": "HOST.pem: HOST must show a good certificate, by the authorities in the file",
}


@attrs.frozen
class ControlFile:
    """One line of the table.

    `kind` is how the file is read. Without the file, ``control/me`` counts if `me` is set and that exists, else
    `default` (None: there is no value). `reread` says when a change is noticed: ``start``, ``HUP`` (and start),
    ``connection``, ``delivery``, ``run`` or ``manual``. With `secret`, what stands behind a ``|`` is never shown.
    """

    name: str
    kind: str
    readers: tuple[str, ...]
    reread: str
    help: str
    default: bytes | int | None = None
    me: bool = False
    check: checks.Check | None = None
    secret: bool = False


_QUEUED = ("qmail-smtpd", "qmail-qmtpd")
_SEND = ("qmail-send",)
_CONTENT = ("qmail-smtpd", "ofmipd", "qmail-qmtpd")
_SMTPD = ("qmail-smtpd",)
_SUBMISSION = ("ofmipd",)
_QMQPD = ("qmail-qmqpd",)
_REMOTE = ("qmail-remote",)
_INJECT = ("qmail-inject",)
_TLS = ("qmail-smtpd", "qmail-pop3d")
_LOGIN = ("qmail-popup",)
_POP3 = ("qmail-popup", "qmail-pop3d")

_TABLE = (
    ControlFile(
        "me", LINE, ("all",), "start", "the name of this host; the default of many other files", check=checks.host
    ),
    ControlFile(
        "accounts",
        COLON_LIST,
        ("twistd qtwist",),
        "start",
        "accounts in place of qmail's, for a daemon started as root",
        check=checks.account,
    ),
    ControlFile(
        "badhelo",
        LIST,
        _SMTPD,
        "connection",
        "[names in HELO](policies.md#badhelo) that are not welcome; patterns, exceptions",
        check=checks.pattern,
    ),
    ControlFile(
        "authmechanisms",
        LIST,
        (*_SMTPD, "qmail-popup"),
        "connection",
        "[mechanisms](users.md#auth) that AUTH offers; else those that work for all",
        check=checks.mechanism,
    ),
    ControlFile(
        "authsenders",
        COLON_LIST,
        _REMOTE,
        "delivery",
        "relays for senders or @domains, [and how to log in there](authsenders.md)",
        check=checks.sender_route,
        secret=True,
    ),
    ControlFile(
        "authsenderstls",
        INTEGER,
        _REMOTE,
        "delivery",
        "before a login: 2: TLS with a good certificate; 1: any TLS; 0: nothing",
        2,
        check=checks.number(0),
    ),
    ControlFile(
        "autoturn",
        COLON_LIST,
        _SMTPD,
        "connection",
        "domain:clients; when they have been here, [mail is tried](extensions.md#etrn)",
        check=checks.turn,
    ),
    ControlFile(
        "badmailfrom", LIST, _SMTPD, "connection", "senders (or @domain) whose mail is refused", check=checks.pattern
    ),
    ControlFile(
        "badmailto",
        LIST,
        _QUEUED,
        "connection",
        "the same as badrcptto, under its other name",
        check=checks.pattern,
    ),
    ControlFile(
        "badrcptto",
        LIST,
        _QUEUED,
        "connection",
        "[recipients](policies.md#badrcptto) whose mail is refused; as badmailfrom",
        check=checks.pattern,
    ),
    ControlFile(
        "bouncefrom",
        LINE,
        _SEND,
        "start",
        "local part of the From of bounces",
        b"MAILER-DAEMON",
        check=checks.local_part,
    ),
    ControlFile("bouncehost", LINE, _SEND, "start", "domain of the From of bounces", b"bouncehost", True, checks.host),
    ControlFile(
        "brtlimit",
        INTEGER,
        _QUEUED,
        "connection",
        "[missing recipients](policies.md#rcptcheck) before the connection ends; 0: any",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "checkpassword",
        LINE,
        _LOGIN,
        "connection",
        "program that [checks passwords](users.md) in place of users/credentials",
        check=checks.command,
    ),
    ControlFile(
        "clientca.pem",
        PEM_FILE,
        _SMTPD,
        "connection",
        "the authorities that vouch for the clients of [tlsclients](tls.md)",
    ),
    ControlFile(
        "clientcert.pem", PEM_FILE, _REMOTE, "delivery", "our certificate and private key for hosts that ask us for one"
    ),
    ControlFile(
        "clientcrl.pem", PEM_FILE, _SMTPD, "connection", "which of their certificates these authorities have revoked"
    ),
    ControlFile(
        "clamd",
        LIST,
        _CONTENT,
        "connection",
        "ClamAV's clamd looks at [messages](content.md#clamav)",
        check=checks.service,
    ),
    ControlFile(
        "concurrencyincoming",
        INTEGER,
        (*_QUEUED, *_QMQPD),
        "connection",
        "most connections at once, of each of SMTP, QMTP and QMQP",
        400,
        check=checks.number(1),
    ),
    ControlFile(
        "concurrencylocal", INTEGER, _SEND, "start", "most local deliveries at once", 10, check=checks.number(0)
    ),
    ControlFile(
        "concurrencypop3", INTEGER, _POP3, "connection", "most POP3 connections at once", 400, check=checks.number(1)
    ),
    ControlFile(
        "concurrencyremote", INTEGER, _SEND, "start", "most remote deliveries at once", 20, check=checks.number(0)
    ),
    ControlFile(
        "confine",
        INTEGER,
        ("twistd qtwist",),
        "start",
        "started as root: keep roles from the network that need none; 0 does not",
        1,
        check=checks.number(0),
    ),
    ControlFile(
        "connratec",
        INTEGER,
        _QUEUED,
        "connection",
        "most connections a minute [from one network](policies.md#limits); 0: any",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "connrateip",
        INTEGER,
        _QUEUED,
        "connection",
        "most connections a minute [from one client](policies.md#limits); 0: any",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "dane",
        INTEGER,
        _REMOTE,
        "delivery",
        "1 honours [TLSA records](tls.md#dane) if resolvers here validate; 2: any that do",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "databytes",
        INTEGER,
        _QUEUED,
        "connection",
        "most octets in a message; 0 means no limit",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "defaultdelivery",
        TEXT,
        ("qmail-lspawn",),
        "delivery",
        "what is done where there is no .qmail file, in its lines",
        b"./Maildir/",
        check=checks.delivery,
    ),
    ControlFile(
        "defaultdomain",
        LINE,
        _INJECT,
        "run",
        "added to host names without a dot",
        b"defaultdomain",
        True,
        checks.host,
    ),
    ControlFile(
        "defaulthost", LINE, _INJECT, "run", "added to addresses without a host", b"defaulthost", True, checks.host
    ),
    ControlFile(
        "dnsbllist",
        LIST,
        _QUEUED,
        "connection",
        "[lists of addresses](policies.md#rblsmtpd) in the DNS, as zone or -zone",
        check=checks.dnsbl,
    ),
    ControlFile(
        "dnsbltimeout",
        INTEGER,
        _QUEUED,
        "connection",
        "seconds to wait for an answer of [dnsbllist](policies.md#rblsmtpd)",
        10,
        check=checks.number(1),
    ),
    ControlFile(
        "dnsservers",
        LIST,
        _REMOTE,
        "start",
        "DNS servers to ask, with port if not 53; by default those of /etc/resolv.conf",
        check=checks.server,
    ),
    ControlFile(
        "delaywarn",
        INTEGER,
        _SEND,
        "start",
        "seconds after which [a delay is reported](dsn.md), where that was asked for",
        14400,
        check=checks.number(0),
    ),
    ControlFile(
        "doublebouncehost",
        LINE,
        _SEND,
        "start",
        "domain of the recipient of double bounces",
        b"doublebouncehost",
        True,
        checks.host,
    ),
    ControlFile(
        "doublebounceto",
        LINE,
        _SEND,
        "start",
        "local part of the recipient of double bounces",
        b"postmaster",
        check=checks.local_part,
    ),
    ControlFile(
        "dsnbounces",
        INTEGER,
        _SEND,
        "start",
        "1: all notices of failure are [reports for programs](dsn.md), too",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "ehlodiscard",
        LIST,
        _SMTPD,
        "connection",
        "[extensions](extensions.md) that EHLO does not announce, such as CHUNKING",
        check=checks.keyword,
    ),
    ControlFile(
        "envnoathost", LINE, _SEND, "start", "domain of recipients without one", b"envnoathost", True, checks.host
    ),
    ControlFile(
        "greetdelay",
        INTEGER,
        _QUEUED,
        "connection",
        "seconds to [keep the greeting back](policies.md#greetdelay)",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "greylistexempt",
        LIST,
        _QUEUED,
        "connection",
        "networks and recipients [without greylisting](policies.md#greylisting)",
        check=checks.exempt,
    ),
    ControlFile(
        "greylisting",
        LIST,
        _QUEUED,
        "connection",
        "if there, [greylisting](policies.md#greylisting) is on; its times",
        check=checks.greylisting,
    ),
    ControlFile(
        "helocheck",
        INTEGER,
        _SMTPD,
        "connection",
        "1: HELO must give [a full name](policies.md#badhelo); 2: one in the DNS",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "etrnclients",
        COLON_LIST,
        _SMTPD,
        "connection",
        "domain:clients that may have [mail for the domain](extensions.md#etrn) tried",
        check=checks.turn,
    ),
    ControlFile(
        "forceauthmailfrom",
        INTEGER,
        _SUBMISSION,
        "connection",
        "0: any sender [by submission](submission.md); 1: one's own; 2: From, too",
        1,
        check=checks.number(0),
    ),
    ControlFile(
        "helohost", LINE, _REMOTE, "delivery", "what we call ourselves in HELO and EHLO", me=True, check=checks.host
    ),
    ControlFile(
        "holds",
        LIST,
        _SEND,
        "HUP",
        "mail that is kept back; written by [`qtwist queue hold`](queue.md)",
        check=checks.hold,
    ),
    ControlFile("idhost", LINE, _INJECT, "run", "domain of Message-IDs", b"idhost", True, checks.host),
    ControlFile(
        "journal",
        INTEGER,
        _SEND,
        "start",
        "1: a [journal](journal.md) in front of the queue's files; 0: files alone",
        1,
        check=checks.number(0),
    ),
    ControlFile(
        "listen", LIST, ("qtwist",), "start", "what is served where: a role and an endpoint", check=checks.listen
    ),
    ControlFile(
        "localiphost",
        LINE,
        _SMTPD,
        "connection",
        "what replaces our own [IP address] in addresses",
        me=True,
        check=checks.host,
    ),
    ControlFile("locals", LIST, _SEND, "HUP", "domains whose mail is delivered here", me=True, check=checks.host),
    ControlFile(
        "maxconnc",
        INTEGER,
        _QUEUED,
        "connection",
        "most connections at once [from one network](policies.md#limits); 0: any",
        100,
        check=checks.number(0),
    ),
    ControlFile(
        "maxconnip",
        INTEGER,
        _QUEUED,
        "connection",
        "most connections at once [from one client](policies.md#limits); 0: any",
        50,
        check=checks.number(0),
    ),
    ControlFile(
        "maxrecipients", INTEGER, _SMTPD, "connection", "most recipients of one message", 10000, check=checks.number(1)
    ),
    ControlFile(
        "memoryminfree",
        INTEGER,
        (*_QUEUED, *_QMQPD, "qmail-queue", *_POP3),
        "connection",
        "octets of memory that must be [free](running.md#bounds); 0: none",
        16 * 1024 * 1024,
        check=checks.number(0),
    ),
    ControlFile(
        "mfcheck",
        INTEGER,
        _QUEUED,
        "connection",
        "1: senders need [a domain that takes mail](policies.md#mfcheck)",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "milters",
        LIST,
        _CONTENT,
        "connection",
        "[milters](content.md#milters) that are asked about connections and messages",
        check=checks.service,
    ),
    ControlFile(
        "morercpthosts",
        LIST,
        ("qmail-newmrh",),
        "manual",
        "further rcpthosts, for qmail-newmrh to compile",
        check=checks.domain,
    ),
    ControlFile("morercpthosts.cdb", CDB_FILE, _QUEUED, "connection", "further rcpthosts, as qmail-newmrh writes them"),
    ControlFile(
        "mtasts",
        INTEGER,
        _REMOTE,
        "delivery",
        "1 honours the [MTA-STS policies](tls.md#mta-sts) of domains, fetched by HTTPS",
        0,
        check=checks.number(0),
    ),
    ControlFile("ofmipname.cdb", CDB_FILE, _SUBMISSION, "connection", "the name database, as ofmipname writes it"),
    ControlFile("percenthack", LIST, _SEND, "start", "domains where user%host is rewritten", check=checks.host),
    ControlFile(
        "plaintextauth",
        INTEGER,
        (*_SMTPD, *_LOGIN),
        "connection",
        "1 takes passwords in the clear [from everywhere](pop3.md), not from here only",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "plusdomain", LINE, _INJECT, "run", "added to host names that end in +", b"plusdomain", True, checks.host
    ),
    ControlFile(
        "policies", LIST, _SMTPD, "start", "policy classes to ask, as package.module.Class", check=checks.class_name
    ),
    ControlFile(
        "proxyclients",
        LIST,
        (*_QUEUED, *_QMQPD, *_POP3),
        "connection",
        "[proxies](extensions.md#proxy) that tell whom they speak for, and our ports",
        check=checks.proxy,
    ),
    ControlFile(
        "qmailqueue",
        LINE,
        _CONTENT,
        "connection",
        "[a program](content.md#programs) in place of the queue, for servers",
    ),
    ControlFile(
        "qmqpclients",
        LIST,
        _QMQPD,
        "connection",
        "IP addresses or networks of QMQP clients, who may send to anywhere",
        check=checks.network,
    ),
    ControlFile(
        "qmqpservers",
        LIST,
        ("qmail-qmqpc",),
        "run",
        "[QMQP servers](qmqp.md#the-client), the first first; with port if not 628",
        check=checks.server,
    ),
    ControlFile("qmtproutes", COLON_LIST, _REMOTE, "delivery", "relays for domains, by QMTP", check=checks.route),
    ControlFile(
        "queuelifetime", INTEGER, _SEND, "start", "seconds until a message is given up", 604800, check=checks.number(0)
    ),
    ControlFile(
        "queueminfree",
        INTEGER,
        (*_QUEUED, *_QMQPD, "qmail-queue"),
        "connection",
        "octets that must be [free](running.md#bounds) where the queue is; 0: none",
        16 * 1024 * 1024,
        check=checks.number(0),
    ),
    ControlFile(
        "rcptcheck",
        INTEGER,
        _QUEUED,
        "connection",
        "1: refuse recipients [without a mailbox](policies.md#rcptcheck) here",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "rcpthosts",
        LIST,
        _QUEUED,
        "connection",
        "domains that mail is taken for; by default those delivered here",
        check=checks.domain,
    ),
    ControlFile(
        "relayclients",
        LIST,
        _QUEUED,
        "connection",
        "IP addresses or networks of clients that may send mail to anywhere",
        check=checks.network,
    ),
    ControlFile(
        "relaylimits",
        COLON_LIST,
        _SUBMISSION,
        "connection",
        "most recipients [of a login](submission.md), as who:recipients/seconds",
        check=checks.relay_limit,
    ),
    ControlFile(
        "servercert.pem",
        PEM_FILE,
        _TLS,
        "connection",
        "our certificate, its chain and its private key; there is [TLS](tls.md) with it",
    ),
    ControlFile(
        "rspamd",
        LIST,
        _CONTENT,
        "connection",
        "rspamd looks at [messages](content.md#rspamd)",
        check=checks.service,
    ),
    ControlFile(
        "smtpauth",
        INTEGER,
        _SMTPD,
        "connection",
        "0: no AUTH on smtp and smtps ports; submission has it always",
        1,
        check=checks.number(0),
    ),
    ControlFile(
        "smtpdworkers",
        INTEGER,
        ("twistd qtwist",),
        "start",
        "processes that serve SMTP, started as root; 0 means one for each core",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "softlimit",
        COLON_LIST,
        ("twistd qtwist",),
        "start",
        "memory of roles started as root, as role:octets ([bounds](running.md#bounds))",
        check=checks.softlimit,
    ),
    ControlFile("smtpgreeting", LINE, _SMTPD, "connection", "the text of the greeting", me=True, check=checks.greeting),
    ControlFile("smtproutes", COLON_LIST, _REMOTE, "delivery", "relays for domains", check=checks.route, secret=True),
    ControlFile(
        "submissionpolicies",
        LIST,
        _SUBMISSION,
        "start",
        "policy classes to ask in submission, as package.module.Class",
        check=checks.class_name,
    ),
    ControlFile(
        "submissionsenders",
        COLON_LIST,
        _SUBMISSION,
        "connection",
        "further senders that a login may use: login:address, login:@domain or login:*",
        check=checks.login_sender,
    ),
    ControlFile(
        "systemaccounts",
        INTEGER,
        _LOGIN,
        "connection",
        "1 lets the system's accounts log in with [their passwords](users.md)",
        0,
        check=checks.number(0),
    ),
    *(
        row
        for service in ("pop3", "qmqp", "qmtp", "smtp", "submission")
        for row in (
            ControlFile(
                f"tcp.{service}",
                LIST,
                _SMTPD if service == "submission" else (f"qmail-{service}d",),
                "connection",
                f"[rules](policies.md#tcprules) about clients of {service}",
                check=checks.rule,
            ),
            ControlFile(
                f"tcp.{service}.cdb",
                CDB_FILE,
                _SMTPD if service == "submission" else (f"qmail-{service}d",),
                "connection",
                "the same as compiled by tcprules, which then counts",
            ),
        )
    ),
    ControlFile(
        "tarpitcount",
        INTEGER,
        _QUEUED,
        "connection",
        "recipients before [answers are slow](policies.md#tarpit); 0: never",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "tarpitdelay",
        INTEGER,
        _QUEUED,
        "connection",
        "seconds that [slow answers](policies.md#tarpit) take",
        5,
        check=checks.number(0),
    ),
    ControlFile(
        "tcpremotehost",
        INTEGER,
        _QUEUED,
        "connection",
        "most seconds to wait for a client's name; 0: only where [rules](policies.md) ask",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "tcpremoteinfo",
        INTEGER,
        _QUEUED,
        "connection",
        "most seconds to wait for IDENT; 0: only where [rules](policies.md) ask",
        0,
        check=checks.number(0),
    ),
    ControlFile(
        "timeoutconnect", INTEGER, _REMOTE, "delivery", "seconds to wait for a connection", 60, check=checks.number(1)
    ),
    ControlFile(
        "timeoutlocal",
        INTEGER,
        ("qmail-local",),
        "delivery",
        "seconds that a program in a .qmail file may run",
        3600,
        check=checks.number(1),
    ),
    ControlFile(
        "timeoutpop3d",
        INTEGER,
        _POP3,
        "connection",
        "seconds to wait for a POP3 client",
        1200,
        check=checks.number(1),
    ),
    ControlFile(
        "timeoutqmtpd",
        INTEGER,
        ("qmail-qmtpd", "qmail-qmqpd"),
        "connection",
        "most seconds that a QMTP or QMQP session may last",
        3600,
        check=checks.number(1),
    ),
    ControlFile(
        "remoterecipients",
        INTEGER,
        _REMOTE,
        "delivery",
        "recipients of a message in one SMTP transaction; 1: one each, as qmail",
        50,
        check=checks.number(1),
    ),
    ControlFile(
        "timeoutremote",
        INTEGER,
        _REMOTE,
        "delivery",
        "seconds to wait for a remote server",
        1200,
        check=checks.number(1),
    ),
    ControlFile(
        "timeoutsmtpd",
        INTEGER,
        _SMTPD,
        "connection",
        "seconds to wait for an SMTP client",
        1200,
        check=checks.number(0),
    ),
    ControlFile(
        "trace",
        LIST,
        _QUEUED,
        "connection",
        "clients whose dialogue is logged, by [`qtwist log trace`](policies.md#trace)",
        check=checks.network,
    ),
    ControlFile(
        "tlsclientciphers",
        LINE,
        _REMOTE,
        "delivery",
        "ciphers for TLS 1.2 with other hosts, as `openssl ciphers` takes them",
        check=checks.ciphers,
    ),
    ControlFile(
        "tlsclients",
        LIST,
        _SMTPD,
        "connection",
        "mail addresses in certificates of clients that may send to anywhere",
        check=checks.mail_address,
    ),
    ControlFile(
        "tlsmemory",
        INTEGER,
        _REMOTE,
        "delivery",
        "seconds to insist on a [certificate that was good before](tls.md); 0: never",
        86400,
        check=checks.number(0),
    ),
    ControlFile(
        "tlsserverciphers",
        LINE,
        _TLS,
        "connection",
        "ciphers for TLS 1.2, as `openssl ciphers` takes them, in place of ours",
        check=checks.ciphers,
    ),
    ControlFile(
        "virtualdomains",
        COLON_LIST,
        _SEND,
        "HUP",
        "domains, addresses or .suffixes, and the prefix for their local parts",
        check=checks.virtual_domain,
    ),
    ControlFile(
        "xclients",
        LIST,
        _SMTPD,
        "connection",
        "[front ends](extensions.md#xclient) that may say who the client is, by XCLIENT",
        check=checks.network,
    ),
)

#: The table, by name and in the order of names but for `me`, which comes first.
CONTROL_FILES = {entry.name: entry for entry in _TABLE}
