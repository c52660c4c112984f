"""Remote delivery: routes, hosts, the SMTP client's shell, tcpto (spec/qmail.md §15)."""
