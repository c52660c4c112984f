"""The queue manager: preprocessing, schedule, channels, bounces, log (spec/qmail.md §9)."""
