-- What all workers of a server share. A training with a sha256 is a model, whose file is complete and on disk.
-- No write-ahead log, which cannot be read on a full disk.
CREATE TABLE IF NOT EXISTS ratings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    userId TEXT NOT NULL,
    rating REAL NOT NULL,
    movieId TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS trainings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')),
    ended TEXT,
    stage TEXT NOT NULL DEFAULT 'waiting',
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    report JSON,
    error TEXT,
    sha256 TEXT
);

-- Each switch of the active model, in order of time.
CREATE TABLE IF NOT EXISTS switches (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model INTEGER NOT NULL REFERENCES trainings,
    switched TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ'))
);

-- A new model is active at once.
CREATE TRIGGER IF NOT EXISTS activate AFTER UPDATE OF sha256 ON trainings WHEN NEW.sha256 IS NOT NULL
BEGIN
    INSERT INTO switches (model) VALUES (NEW.id);
END;

CREATE TRIGGER IF NOT EXISTS finish AFTER UPDATE OF error, sha256 ON trainings WHEN NEW.ended IS NULL
BEGIN
    UPDATE trainings SET ended = strftime('%Y-%m-%dT%H:%M:%fZ') WHERE id = NEW.id;
END;

CREATE VIEW IF NOT EXISTS state AS
SELECT
    (SELECT max(id) FROM switches) AS switch,
    (SELECT coalesce(max(id), 0) FROM ratings) AS last_rating;

CREATE VIEW IF NOT EXISTS models AS
SELECT id, ended AS created, sha256, report FROM trainings WHERE sha256 IS NOT NULL;

-- Models that have been active and still exist, the current one first, then the one before.
CREATE VIEW IF NOT EXISTS candidates AS
SELECT model FROM switches JOIN models ON models.id = model GROUP BY model ORDER BY max(switches.id) DESC;

CREATE VIEW IF NOT EXISTS active AS
SELECT model FROM candidates LIMIT 1;

-- Models that may be removed, with their place among all, the newest first.
CREATE VIEW IF NOT EXISTS spare AS
SELECT * FROM (SELECT id, row_number() OVER (ORDER BY id DESC) AS place FROM models) WHERE id NOT IN active;

-- The start of a training's count: how many were done, and when; and the time of its latest count.
CREATE TABLE IF NOT EXISTS paces (
    training INTEGER PRIMARY KEY REFERENCES trainings,
    first INTEGER NOT NULL,
    began REAL NOT NULL,
    latest REAL NOT NULL
);

CREATE TRIGGER IF NOT EXISTS count_anew AFTER UPDATE OF total ON trainings WHEN NEW.total <> OLD.total
BEGIN
    INSERT OR REPLACE INTO paces VALUES (NEW.id, NEW.done, julianday('now') * 86400, julianday('now') * 86400);
END;

CREATE TRIGGER IF NOT EXISTS count_on AFTER UPDATE OF done ON trainings WHEN NEW.done <> OLD.done
BEGIN
    UPDATE paces SET latest = julianday('now') * 86400 WHERE training = NEW.id;
END;

-- done_per_second and seconds_left are null until something was counted, seconds_left also when all is done.
CREATE VIEW IF NOT EXISTS progress AS
SELECT
    id,
    CASE WHEN ended IS NULL THEN 'running' WHEN error IS NULL THEN 'done' ELSE 'failed' END AS state,
    stage,
    done,
    total,
    round(nullif(done - first, 0) / (latest - began), 1) AS done_per_second,
    CASE WHEN ended IS NULL THEN round(nullif(total - done, 0) * (latest - began) / (done - first)) END AS seconds_left,
    started,
    round((julianday(coalesce(ended, 'now')) - julianday(started)) * 86400, 3) AS seconds,
    report,
    error
FROM trainings LEFT JOIN paces ON training = id;
