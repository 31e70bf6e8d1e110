-- Traffic is looked at window by window; SQLite has this index since the table is there.
CREATE INDEX connection_metrics_minute ON connection_metrics(minute);
