-- What was asked of the server and by whom; each row's hash covers the one before it.
CREATE TABLE audit (
    seq BIGINT PRIMARY KEY,
    at BIGINT NOT NULL,
    account TEXT NOT NULL,
    key_id TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    outcome TEXT NOT NULL,
    request_id TEXT NOT NULL,
    hash TEXT NOT NULL
);

-- What has happened to sandboxes, for those who follow.
CREATE TABLE event (
    seq BIGINT PRIMARY KEY,
    at BIGINT NOT NULL,
    type TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    group_name TEXT NOT NULL,
    -- JSON
    data TEXT NOT NULL
);
