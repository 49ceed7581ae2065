-- Unfinished answers of the chat model, by the cell of the message.
CREATE TABLE turns (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    cell    TEXT NOT NULL,
    PRIMARY KEY (session, cell)
) STRICT, WITHOUT ROWID;
-- Shares: tokens that can read one session.
CREATE TABLE shares (
    id         TEXT PRIMARY KEY,
    session    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    name       TEXT,
    hash       BLOB NOT NULL UNIQUE,       -- SHA-256; the token itself is not stored
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX shares_by_session ON shares (session);
