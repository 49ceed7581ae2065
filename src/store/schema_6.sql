-- The fold states of cells and Output widgets, JSON: what later output continues from. They were part of the `resume` document, which was
-- written with each message. Old `resume` documents are dropped, so an execution that runs during the migration ends as lost.
CREATE TABLE folds (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    number  INTEGER NOT NULL,
    json    TEXT NOT NULL,
    PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;
DELETE FROM documents WHERE kind = 'resume';
