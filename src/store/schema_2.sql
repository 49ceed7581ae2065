-- What the kernel says of itself is long, and changes only with the kernel.
ALTER TABLE sessions ADD COLUMN kernel_info TEXT;
-- The first of the numbers that an event stands for, where events of finished text were merged into it.
ALTER TABLE events ADD COLUMN first INTEGER;
-- Up to which number a cell's events have been merged.
ALTER TABLE cells ADD COLUMN compacted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX cells_to_compact ON cells (session, number)
    WHERE state = 'finished' AND last_seq - first_seq > 16 AND last_seq > compacted;
-- What a file said beside its cells and outputs.
CREATE TABLE notebooks (
    session TEXT PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    json    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
