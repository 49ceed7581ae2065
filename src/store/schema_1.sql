CREATE TABLE sessions (
    id             TEXT PRIMARY KEY,
    principal      TEXT NOT NULL,          -- the owner; other principals do not see it
    name           TEXT,
    kernel         TEXT NOT NULL,
    language       TEXT NOT NULL,
    spec           TEXT NOT NULL,          -- JSON: limits, network, labels, lifetimes
    state          TEXT NOT NULL,
    why            TEXT,                   -- the reason of its end
    sandbox        TEXT,                   -- JSON: the record of the sandbox
    epoch          INTEGER NOT NULL DEFAULT 0,  -- the epoch of the agent, and its last event that is stored
    seq            INTEGER NOT NULL DEFAULT 0,
    last_seq       INTEGER NOT NULL DEFAULT 0,  -- the last event of the session
    resume         TEXT,                   -- JSON: the state that the driver needs to resume
    created_at     INTEGER NOT NULL,       -- milliseconds since 1970, like all times
    last_active_at INTEGER NOT NULL,
    expires_at     INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE cells (
    session         TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    number          INTEGER NOT NULL,      -- in the order of creation
    id              TEXT NOT NULL,
    place           REAL NOT NULL,         -- the position in the notebook
    cell_type       TEXT NOT NULL,
    source          TEXT NOT NULL,
    metadata        TEXT NOT NULL,         -- JSON
    options         TEXT NOT NULL,         -- JSON: timeout and other execution options
    state           TEXT NOT NULL,
    run             TEXT,                  -- the msg_id of the latest execution
    started_at      INTEGER,
    result          TEXT,                  -- JSON: the result of the execution
    first_seq       INTEGER NOT NULL,      -- the first event of the latest execution
    last_seq        INTEGER NOT NULL,
    PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX cells_by_id ON cells (session, id);
CREATE INDEX cells_queued ON cells (state) WHERE state = 'queued';

CREATE TABLE events (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL,
    time    INTEGER NOT NULL,
    cell    TEXT,
    type    TEXT NOT NULL,
    body    TEXT NOT NULL,                 -- JSON object: the fields of this kind of event
    PRIMARY KEY (session, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX events_by_cell ON events (session, cell, seq) WHERE cell IS NOT NULL;

CREATE TABLE artifacts (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    sha256  TEXT NOT NULL,
    cell    TEXT NOT NULL,
    name    TEXT NOT NULL,
    mime    TEXT NOT NULL,
    bytes   INTEGER NOT NULL,
    width   INTEGER,
    height  INTEGER,
    seq     INTEGER NOT NULL,
    PRIMARY KEY (session, sha256, cell, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_hash ON artifacts (sha256);

CREATE TABLE tokens (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    principal    TEXT NOT NULL,
    scope        TEXT NOT NULL,
    hash         BLOB NOT NULL UNIQUE,     -- SHA-256; the token itself is not stored
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER
) STRICT, WITHOUT ROWID;
