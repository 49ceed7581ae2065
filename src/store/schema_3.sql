-- Answers of a model that are on their way, by the cell of the message that they answer.
CREATE TABLE turns (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    cell    TEXT NOT NULL,
    PRIMARY KEY (session, cell)
) STRICT, WITHOUT ROWID;
-- Links by which others may read one session.
CREATE TABLE shares (
    id         TEXT PRIMARY KEY,
    session    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    name       TEXT,
    hash       BLOB NOT NULL UNIQUE,       -- SHA-256; the token itself is nowhere
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX shares_by_session ON shares (session);
