-- The time at which a cell was queued, and the `traceparent` of the request, if traces are enabled. The latter was among the
-- options. Spans of ended executions have been recorded already, so it is moved for unfinished ones only.
ALTER TABLE cells ADD COLUMN queued_at INTEGER;
ALTER TABLE cells ADD COLUMN trace TEXT;
UPDATE cells SET trace = json_extract(options, '$.trace') WHERE state <> 'finished' AND json_valid(options);
