-- Sandboxes that were created by themselves, not for a session. `record` is how they are found again.
CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY,
    principal TEXT NOT NULL,
    name TEXT,
    kernel TEXT NOT NULL,
    spec TEXT NOT NULL,
    record TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) WITHOUT ROWID;
