-- The kernel_info_reply of the kernel is long, and changes only with the kernel.
ALTER TABLE sessions ADD COLUMN kernel_info TEXT;
-- The first number that an event stands for, if events of finished text were merged into it.
ALTER TABLE events ADD COLUMN first INTEGER;
-- The last event of a cell that was examined for merging.
ALTER TABLE cells ADD COLUMN compacted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX cells_to_compact ON cells (session, number)
    WHERE state = 'finished' AND last_seq - first_seq > 16 AND last_seq > compacted;
-- Imported notebook files without their cells.
CREATE TABLE notebooks (
    session TEXT PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    json    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
