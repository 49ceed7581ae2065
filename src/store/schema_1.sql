CREATE TABLE sessions (
    id             TEXT PRIMARY KEY,
    principal      TEXT NOT NULL,          -- who made it; others do not see it
    name           TEXT,
    kernel         TEXT NOT NULL,
    language       TEXT NOT NULL,
    spec           TEXT NOT NULL,          -- JSON: limits, network, labels, lifetimes
    state          TEXT NOT NULL,
    why            TEXT,                   -- of its end
    sandbox        TEXT,                   -- JSON: the sandbox's record
    epoch          INTEGER NOT NULL DEFAULT 0,  -- the agent's life, and the last of its events that is in here
    seq            INTEGER NOT NULL DEFAULT 0,
    last_seq       INTEGER NOT NULL DEFAULT 0,  -- of our own events
    resume         TEXT,                   -- JSON: what the driver needs to go on after a restart of the server
    created_at     INTEGER NOT NULL,       -- milliseconds since 1970, as all times
    last_active_at INTEGER NOT NULL,
    expires_at     INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE cells (
    session         TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    number          INTEGER NOT NULL,      -- in the order of making
    id              TEXT NOT NULL,
    place           REAL NOT NULL,         -- in the order of the notebook
    cell_type       TEXT NOT NULL,
    source          TEXT NOT NULL,
    metadata        TEXT NOT NULL,         -- JSON
    options         TEXT NOT NULL,         -- JSON: timeout and the like of the last run
    state           TEXT NOT NULL,
    run             TEXT,                  -- the msg_id of the last run
    started_at      INTEGER,
    result          TEXT,                  -- JSON: how it ended
    first_seq       INTEGER NOT NULL,      -- its outputs are told by its events from here on
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
    body    TEXT NOT NULL,                 -- JSON object: the event's own fields
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
    hash         BLOB NOT NULL UNIQUE,     -- SHA-256; the token itself is nowhere
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER
) STRICT, WITHOUT ROWID;
