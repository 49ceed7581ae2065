-- When a cell's last run was queued, and what asked for it (a `traceparent`), where traces are kept. That was among the options;
-- of runs that have ended it has been told.
ALTER TABLE cells ADD COLUMN queued_at INTEGER;
ALTER TABLE cells ADD COLUMN trace TEXT;
UPDATE cells SET trace = json_extract(options, '$.trace') WHERE state <> 'finished' AND json_valid(options);
