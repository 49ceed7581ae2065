-- The forms of `resume` documents and of rows in `folds` have changed. Old ones are dropped, so an execution that runs during the
-- migration ends as lost.
DELETE FROM folds;
DELETE FROM documents WHERE kind = 'resume';
