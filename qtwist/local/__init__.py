"""Local delivery: users, .qmail files, and what their lines ask for (spec/qmail.md §12 to §14)."""
